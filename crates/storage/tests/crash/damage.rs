//! Damage to the files of a database whose process is dead.

use std::path::{Path, PathBuf};

use super::Random;

/// Bytes taken off the end of a file at most: within the last batches, or many of them.
const LONGEST_CUTS: [u64; 2] = [700, 20_000];

/// Every file of a database.
pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        // A database that is not there yet has no files.
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Takes the zeros that fjall reserves off the end of its journals: they are large, and mean
/// nothing.
pub(crate) fn trim_reserved(folder: &Path) {
    for file in files_below(folder) {
        if file.extension().is_some_and(|extension| extension == "jnl") {
            let used = used(&file);
            let file = std::fs::File::options().write(true).open(&file).unwrap();
            file.set_len(used).unwrap();
        }
    }
}

/// Length of a file without the zeros at its end.
fn used(path: &Path) -> u64 {
    const CHUNK: usize = 4096;
    let bytes = std::fs::read(path).unwrap();
    let mut end = bytes.len();
    // Slices are compared much faster than bytes are looked at.
    while end >= CHUNK && bytes[end - CHUNK..end] == [0; CHUNK] {
        end -= CHUNK;
    }
    let last = bytes[..end].iter().rposition(|byte| *byte != 0);
    last.map_or(0, |last| last as u64 + 1)
}

/// The file that holds the newest batches: fjall's last journal, sled's one file.
fn newest(folder: &Path) -> PathBuf {
    let holds_batches = |path: &&PathBuf| {
        path.extension().is_some_and(|extension| extension == "jnl") || path.ends_with("db")
    };
    let files = files_below(folder);
    files.iter().rfind(holds_batches).unwrap().clone()
}

/// Cuts the end of the newest file.
pub(super) fn cut_newest(folder: &Path, random: &Random) -> PathBuf {
    let file = newest(folder);
    let longest = LONGEST_CUTS[random.below(2) as usize];
    let cut = used(&file).saturating_sub(1 + random.below(longest));
    let opened = std::fs::File::options().write(true).open(&file).unwrap();
    opened.set_len(cut.max(1)).unwrap();
    file
}

/// Flips one to three bits: in seven of ten rounds of the newest file, else of any.
pub(super) fn flip_bits(folder: &Path, random: &Random) -> PathBuf {
    let mut all = files_below(folder);
    all.retain(|file| used(file) > 1);
    let file = if random.below(10) < 7 {
        newest(folder)
    } else {
        all[random.below(all.len() as u64) as usize].clone()
    };
    let (mut whole, used) = (std::fs::read(&file).unwrap(), used(&file));
    for _ in 0..=random.below(3) {
        whole[random.below(used) as usize] ^= 1 << random.below(8);
    }
    std::fs::write(&file, whole).unwrap();
    file
}
