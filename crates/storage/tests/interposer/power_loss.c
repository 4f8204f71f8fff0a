/*
 * A model of power loss, preloaded into a process: what survives of a file is its content at its
 * last fsync or fdatasync. After each of these calls the content is copied to a shadow folder; the
 * test kills the process and puts the shadows in the files' places. Creating, renaming and removing
 * files survive at once (lenient). sync_file_range makes nothing durable, as its manual says.
 *
 * POWER_LOSS_ROOT: only files below it are modelled. POWER_LOSS_SHADOWS: where shadows go, a folder.
 * A shadow's name is the file's inode and time of birth, so that it stays with a renamed file.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

/* A failure of the model itself must not pass for a survived power loss. */
static void give_up(const char *what) {
    fprintf(stderr, "power_loss: %s: %s\n", what, strerror(errno));
    abort();
}

static void copy_data(int from, int to) {
    static char buffer[1 << 16];
    struct stat about;
    if (fstat(from, &about) != 0) give_up("fstat");
    if (ftruncate(to, about.st_size) != 0) give_up("ftruncate");
    off_t at = 0;
    while ((at = lseek(from, at, SEEK_DATA)) >= 0) {
        off_t hole = lseek(from, at, SEEK_HOLE);
        while (at < hole) {
            size_t want = (size_t)(hole - at) < sizeof buffer ? (size_t)(hole - at) : sizeof buffer;
            ssize_t got = pread(from, buffer, want, at);
            if (got < 0) give_up("pread");
            if (got == 0) return;
            if (pwrite(to, buffer, (size_t)got, at) != got) give_up("pwrite");
            at += got;
        }
    }
}

static void remember(int fd) {
    const char *root = getenv("POWER_LOSS_ROOT");
    const char *shadows = getenv("POWER_LOSS_SHADOWS");
    if (!root || !shadows) return;
    char link[64], path[PATH_MAX], shadow[PATH_MAX], fresh[PATH_MAX + 8];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return;
    path[length] = 0;
    if (strncmp(path, root, strlen(root)) != 0) return;
    struct statx about;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, &about) != 0) give_up("statx");
    if (!S_ISREG(about.stx_mode)) return;
    snprintf(shadow, sizeof shadow, "%s/%llu-%lld-%u", shadows, (unsigned long long)about.stx_ino,
             (long long)about.stx_btime.tv_sec, about.stx_btime.tv_nsec);
    pthread_mutex_lock(&turn);
    snprintf(fresh, sizeof fresh, "%s.new", shadow);
    int from = open(path, O_RDONLY | O_CLOEXEC);
    int to = open(fresh, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (from < 0 || to < 0) give_up("open");
    copy_data(from, to);
    close(from);
    close(to);
    if (rename(fresh, shadow) != 0) give_up("rename");
    pthread_mutex_unlock(&turn);
}

int fsync(int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    int result = real(fd);
    if (result == 0) remember(fd);
    return result;
}

int fdatasync(int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fdatasync");
    int result = real(fd);
    if (result == 0) remember(fd);
    return result;
}
