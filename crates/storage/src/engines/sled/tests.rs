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

#[tokio::test]
async fn the_next_start_does_not_read_what_was_written_before_a_good_end() {
    for (batches, much) in [(1, false), (20, true)] {
        let folder = tempfile::tempdir().unwrap();
        let engine = SledEngine::open(folder.path()).unwrap();
        let before = noted_upto(folder.path());
        for number in 0..batches {
            let key = [b'k', number];
            let value = vec![number; 1024 * 1024];
            let writes = vec![(&key[..], Some(&value[..]))];
            engine
                .write(&WriteSet { writes }, Durability::Lazy)
                .unwrap();
        }
        engine.close().await.unwrap();
        drop(engine);
        assert_eq!(noted_upto(folder.path()) > before, much);
        assert!(!is_written_again(folder.path()), "it was closed well");
        let engine = SledEngine::open(folder.path()).unwrap();
        let last = engine.get(&[b'k', batches - 1]).await.unwrap().unwrap();
        assert_eq!(last, vec![batches - 1; 1024 * 1024]);
    }
}
