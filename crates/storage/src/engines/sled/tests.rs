use std::time::SystemTime;

use super::*;

/// Whether the file is written again before sled opens it.
fn is_written_again(path: &Path) -> bool {
    let file = path.join("db");
    let writable = File::options().write(true).open(&file).unwrap();
    writable.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    let before = std::fs::read(&file).unwrap();
    let lock = lock_folder(path).unwrap();
    let length = lock.metadata().unwrap().len();
    write_unclean_again(&lock, path).unwrap();
    lock.set_len(length).unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), before);
    writable.metadata().unwrap().modified().unwrap() > SystemTime::UNIX_EPOCH
}

#[tokio::test]
async fn the_file_of_an_unclean_end_is_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let engine = SledEngine::open(folder.path()).unwrap();
    engine.close().await.unwrap();
    drop(engine);
    assert!(!is_written_again(folder.path()), "it was closed well");
    drop(SledEngine::open(folder.path()).unwrap());
    assert!(is_written_again(folder.path()), "it was not closed");
}

/// How far in its log sled has noted where its pages are.
fn noted_upto(path: &Path) -> u64 {
    let names = std::fs::read_dir(path).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let noted = names.filter_map(|name| {
        let at = name.strip_prefix("snap.")?;
        u64::from_str_radix(at, 16).ok()
    });
    noted.max().unwrap_or_default()
}

fn write_megabytes(engine: &SledEngine, count: u8) {
    for number in 0..count {
        let key = [b'k', number];
        let value = vec![number; 1024 * 1024];
        let writes = vec![(&key[..], Some(&value[..]))];
        let written = engine.write(&WriteSet { writes }, Durability::Lazy);
        written.unwrap();
    }
}

#[tokio::test]
async fn the_next_start_does_not_read_what_was_written_before_a_good_end() {
    for (batches, much) in [(1, false), (20, true)] {
        let folder = tempfile::tempdir().unwrap();
        let engine = SledEngine::open(folder.path()).unwrap();
        let before = noted_upto(folder.path());
        write_megabytes(&engine, batches);
        engine.close().await.unwrap();
        drop(engine);
        assert_eq!(noted_upto(folder.path()) > before, much);
        assert!(!is_written_again(folder.path()), "it was closed well");
        let engine = SledEngine::open(folder.path()).unwrap();
        let last = engine.get(&[b'k', batches - 1]).await.unwrap().unwrap();
        assert_eq!(last, vec![batches - 1; 1024 * 1024]);
    }
}

#[tokio::test]
async fn a_copy_is_not_read_while_commits_wait_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let [from, into] = ["from", "into"].map(|name| folder.path().join(name));
    let engine = SledEngine::open(&from).unwrap();
    write_megabytes(&engine, 20);
    engine.checkpoint(&into).await.unwrap();
    // As far as in a database that was just made.
    assert_eq!(noted_upto(&into), noted_upto(&from));
    let copy = SledEngine::open(&into).unwrap();
    let last = copy.get(b"k\x13").await.unwrap().unwrap();
    assert_eq!(last, vec![19; 1024 * 1024]);
}

#[test]
fn opening_waits_for_the_end_of_the_database_before() {
    let folder = tempfile::tempdir().unwrap();
    let lock = lock_folder(folder.path()).unwrap();
    let ending = Ending::begin(folder.path());
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| SledEngine::open(folder.path()).map(drop));
        // Longer than it waits for the lock of somebody else.
        std::thread::park_timeout(LOCK_WAIT * 20);
        assert!(!opening.is_finished());
        drop((lock, ending));
        opening.join().unwrap().unwrap();
    });
}
