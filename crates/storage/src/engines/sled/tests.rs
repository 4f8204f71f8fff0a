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
