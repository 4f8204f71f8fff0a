//! The floor below every durable write, and sizes on disk.

use std::{
    fs::File,
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use crate::{Error, load::percentile};

/// Writes of the floor: enough for a median, few enough for a second or two.
const WRITES: usize = 500;
/// What a short message's batch weighs, about.
const WRITE_BYTES: usize = 2_048;

/// A loop of write and fdatasync on a file of its own: median, 99th percentile and rate.
pub(crate) fn fdatasync_floor(folder: &Path) -> Result<String, Error> {
    let mut file = File::create(folder.join("floor"))?;
    let mut times = Vec::with_capacity(WRITES);
    for _ in 0..WRITES {
        let started = Instant::now();
        file.write_all(&[7; WRITE_BYTES])?;
        file.sync_data()?;
        times.push(started.elapsed());
    }
    std::fs::remove_file(folder.join("floor"))?;
    let total: Duration = times.iter().sum();
    Ok(format!(
        "write of {WRITE_BYTES} bytes + fdatasync: p50 {:.2} ms, p99 {:.2} ms, {:.0}/s",
        percentile(&mut times, 50).as_secs_f64() * 1e3,
        percentile(&mut times, 99).as_secs_f64() * 1e3,
        WRITES as f64 / total.as_secs_f64(),
    ))
}

/// The bytes that all files below a folder take up on disk.
pub(crate) fn bytes_below(folder: &Path) -> Result<u64, Error> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        // A file may go away while a server compacts.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        bytes += if metadata.is_dir() {
            bytes_below(&entry.path())?
        } else {
            metadata.blocks() * 512
        };
    }
    Ok(bytes)
}
