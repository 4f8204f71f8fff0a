//! Reads fjall's journal before fjall does.
//!
//! fjall ends its replay at the first entry that it cannot read, cuts the file there, and says
//! nothing: right for the torn end of a write that was never acknowledged, wrong for damage in the
//! middle, which would drop acknowledged batches. The two are told apart by what follows: after a
//! torn end, which is cut here, there is no whole batch. Sequence numbers, which fjall's checksums do not cover, must
//! rise from batch to batch.
//!
//! The layout is that of fjall 3 (`journal/entry.rs` there); a test writes with fjall and reads
//! here, so that a new layout is noticed.

use std::{
    fs::File,
    io::{self, BufReader, ErrorKind, Read, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use xxhash_rust::xxh3::Xxh3;

use crate::{engine::EngineError, engines::local::write_again};

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const MAGIC: &[u8; 4] = b"FJL\x03";
/// More items than any group has; see the limits of the committer.
const MAX_ITEMS: u32 = 100_000;
/// The greatest of the numbers of value, tombstone and the like.
const MAX_VALUE_TYPE: u8 = 4;
/// Bytes of the smallest batch: start, end.
const SMALLEST: usize = 13 + 13;
/// Bytes read at once when looking for zeros.
const CHUNK: usize = 64 * 1024;

/// Damage in the middle of a journal, or the torn end of the last one.
struct Damage {
    journal: PathBuf,
    /// Where the whole batches before it end.
    at: u64,
    why: &'static str,
    /// What follows was never acknowledged, as far as can be seen.
    torn_end: bool,
}

/// Fails if a journal in the (locked) database folder is damaged in its middle; cuts a torn end.
/// What is whole is on disk afterwards, not in the system's cache only: fjall goes on behind it.
pub(super) fn check(folder: &Path) -> Result<(), EngineError> {
    let (whole, damage) = read_journals(folder)?;
    match damage {
        None => {}
        Some(damage) if damage.torn_end => cut(&damage.journal, damage.at)?,
        Some(damage) => {
            return Err(EngineError::Damaged {
                file: damage.journal,
                why: format!("at byte {}: {}", damage.at, damage.why),
            });
        }
    }
    // None after a clean stop, which empties the journal.
    let mut written = whole.iter().filter(|(_, end)| *end > 0);
    written.try_for_each(|(journal, end)| write_again(journal, *end))
}

/// Empties the newest journal, when all that it holds is in tables.
pub(super) fn empty_newest(folder: &Path) -> Result<(), EngineError> {
    match journals(folder)?.last() {
        Some(newest) => cut(newest, 0),
        None => Ok(()),
    }
}

fn cut(journal: &Path, at: u64) -> Result<(), EngineError> {
    let file = File::options().write(true).open(journal);
    file.and_then(|file| file.set_len(at).and_then(|()| file.sync_all()))
        .map_err(failed(journal))
}

/// Cuts the first damaged journal before its damage and sets all later ones aside, so that what
/// remains is whole. A copy of each is kept beside it. Gives what was done, in words.
pub(super) fn cut_damage(folder: &Path) -> Result<Vec<String>, EngineError> {
    let Some(damage) = read_journals(folder)?.1 else {
        return Ok(Vec::new());
    };
    let mut done = Vec::new();
    for journal in journals(folder)? {
        if number(&journal) < number(&damage.journal) {
            continue;
        }
        let aside = journal.with_extension("jnl-damaged");
        std::fs::copy(&journal, &aside).map_err(failed(&aside))?;
        if journal == damage.journal {
            cut(&journal, damage.at)?;
            done.push(format!(
                "{} was cut at byte {}",
                journal.display(),
                damage.at
            ));
        } else {
            std::fs::remove_file(&journal).map_err(failed(&journal))?;
            done.push(format!("{} was set aside", journal.display()));
        }
    }
    crate::engines::local::sync_folder(folder)?;
    Ok(done)
}

/// The journals up to the first damage, and where the whole batches of each end.
type JournalsRead = (Vec<(PathBuf, u64)>, Option<Damage>);

fn read_journals(folder: &Path) -> Result<JournalsRead, EngineError> {
    let mut whole = Vec::new();
    let mut seqno = None;
    let journals = journals(folder)?;
    for (index, journal) in journals.iter().enumerate() {
        let file = File::open(journal).map_err(failed(journal))?;
        let mut reader = BufReader::new(file);
        let (at, in_order) = whole_batches(&mut reader, &mut seqno).map_err(failed(journal))?;
        whole.push((journal.clone(), at));
        reader.seek(SeekFrom::Start(at)).map_err(failed(journal))?;
        let rest = rest(&mut reader).map_err(failed(journal))?;
        let newest = index + 1 == journals.len();
        let (why, torn_end) = match (in_order, rest) {
            (true, Rest::Nothing) => continue,
            (true, Rest::Torn) if newest => ("a torn batch", true),
            (true, Rest::Torn) => ("a torn batch, and a newer journal", false),
            (true, Rest::Batches) => ("whole batches follow what cannot be read", false),
            (false, _) => ("batches are out of order", false),
        };
        let damage = Damage {
            journal: journal.clone(),
            at,
            why,
            torn_end,
        };
        return Ok((whole, Some(damage)));
    }
    Ok((whole, None))
}

fn failed(path: &Path) -> impl Fn(io::Error) -> EngineError {
    let path = path.to_owned();
    move |source| EngineError::Io {
        what: "cannot read",
        path: path.clone(),
        source,
    }
}

/// The journals of a database, oldest first.
fn journals(folder: &Path) -> Result<Vec<PathBuf>, EngineError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed(folder))? {
        let path = entry.map_err(failed(folder))?.path();
        if path.extension().is_some_and(|extension| extension == "jnl") {
            let number = path
                .file_stem()
                .and_then(|stem| stem.to_str()?.parse::<u64>().ok());
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// The number in a journal's file name.
fn number(journal: &Path) -> Option<u64> {
    journal.file_stem()?.to_str()?.parse().ok()
}

/// Reads whole batches from the start; gives where they end, and whether that is not because the
/// next one is out of order.
fn whole_batches(reader: &mut impl Read, seqno: &mut Option<u64>) -> io::Result<(u64, bool)> {
    let mut end = 0;
    while let Some(batch) = read_batch(reader)? {
        if seqno.is_some_and(|before| batch.seqno <= before) {
            return Ok((end, false));
        }
        *seqno = Some(batch.seqno);
        end += batch.length;
    }
    Ok((end, true))
}

struct BatchFound {
    seqno: u64,
    length: u64,
}

/// One whole batch, or nothing if what comes is none.
fn read_batch(reader: &mut impl Read) -> io::Result<Option<BatchFound>> {
    match parse_batch(reader) {
        Ok(found) => Ok(found),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse_batch(reader: &mut impl Read) -> io::Result<Option<BatchFound>> {
    if array::<1>(reader)? != [START] {
        return Ok(None);
    }
    let count = u32::from_le_bytes(array(reader)?);
    let seqno = u64::from_le_bytes(array(reader)?);
    let mut length = 13;
    let mut hash = Xxh3::new();
    for _ in 0..count {
        let Some(read) = parse_item(reader, &mut hash)? else {
            return Ok(None);
        };
        length += read;
    }
    let ended = array::<1>(reader)? == [END];
    let checksum = u64::from_le_bytes(array(reader)?);
    let whole = ended && array::<4>(reader)? == *MAGIC && checksum == hash.digest();
    Ok(whole.then_some(BatchFound {
        seqno,
        length: length + 13,
    }))
}

/// One entry within a batch; gives its length.
fn parse_item(reader: &mut impl Read, hash: &mut Xxh3) -> io::Result<Option<u64>> {
    let tag = array::<1>(reader)?;
    hash.update(&tag);
    match tag[0] {
        ITEM => {
            // Value type, compression, keyspace (8), key length (2), value length (4), stored
            // length (4).
            let header = array::<20>(reader)?;
            hash.update(&header);
            let [.., k0, k1, _, _, _, _, v0, v1, v2, v3] = header;
            let key = u64::from(u16::from_le_bytes([k0, k1]));
            let value = u64::from(u32::from_le_bytes([v0, v1, v2, v3]));
            let mut body = Vec::new();
            reader.by_ref().take(key + value).read_to_end(&mut body)?;
            hash.update(&body);
            Ok((body.len() as u64 == key + value).then_some(21 + key + value))
        }
        CLEAR => {
            hash.update(&array::<8>(reader)?);
            Ok(Some(9))
        }
        _ => Ok(None),
    }
}

fn array<const N: usize>(reader: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// What comes after the last whole batch.
#[derive(PartialEq)]
enum Rest {
    /// Nothing, or zeros: the space that fjall reserves.
    Nothing,
    /// A torn batch.
    Torn,
    /// Whole batches.
    Batches,
}

fn rest(reader: &mut BufReader<File>) -> io::Result<Rest> {
    let mut chunk = vec![0; CHUNK];
    // The reserved space is never read into memory as a whole.
    let first = loop {
        let read = reader.read(&mut chunk)?;
        if read == 0 {
            return Ok(Rest::Nothing);
        }
        if let Some(place) = chunk[..read].iter().position(|byte| *byte != 0) {
            break chunk[place..read].to_vec();
        }
    };
    let mut rest = first;
    reader.read_to_end(&mut rest)?;
    while rest.last() == Some(&0) {
        rest.pop();
    }
    // The last checksum's trailer never ends in a zero, so nothing whole was cut off.
    let places = 1..rest.len().saturating_sub(SMALLEST - 1);
    let found = places
        .map(|place| &rest[place..])
        .filter(|candidate| looks_like_batch(candidate))
        .any(|mut candidate| parse_batch(&mut candidate).is_ok_and(|batch| batch.is_some()));
    Ok(if found { Rest::Batches } else { Rest::Torn })
}

/// Whether it may be worth parsing: tag, a plausible number of items, the head of the first.
fn looks_like_batch(bytes: &[u8]) -> bool {
    let [
        START,
        c0,
        c1,
        c2,
        c3,
        _,
        _,
        _,
        _,
        _,
        _,
        _,
        _,
        first,
        kind,
        compression,
        ..,
    ] = bytes
    else {
        return false;
    };
    let count = u32::from_le_bytes([*c0, *c1, *c2, *c3]);
    let item = *first == ITEM && *kind <= MAX_VALUE_TYPE && *compression <= 1;
    (1..=MAX_ITEMS).contains(&count) && (item || *first == CLEAR)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A database with ten batches, killed without a clean close as far as its journal goes.
    fn written() -> (tempfile::TempDir, PathBuf, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let database = fjall::Database::builder(folder.path()).open().unwrap();
        let rows = database
            .keyspace("rows", fjall::KeyspaceCreateOptions::default)
            .unwrap();
        for number in 0..10_u8 {
            let mut batch = database
                .batch()
                .durability(Some(fjall::PersistMode::SyncAll));
            batch.insert(&rows, [1, number], vec![number; 300]);
            batch.remove(&rows, [2, number]);
            batch.commit().unwrap();
        }
        drop((rows, database));
        let path = journals(folder.path()).unwrap().pop().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        while bytes.last() == Some(&0) {
            bytes.pop();
        }
        (folder, path, bytes)
    }

    #[test]
    fn what_fjall_writes_is_read() {
        let (folder, path, bytes) = written();
        check(folder.path()).unwrap();
        let mut seqno = None;
        let read = whole_batches(&mut bytes.as_slice(), &mut seqno).unwrap();
        assert_eq!(read, (bytes.len() as u64, true), "in {}", path.display());
    }

    #[test]
    fn what_is_read_is_written_again() {
        let (folder, path, bytes) = written();
        for cut in [0, 5] {
            std::fs::write(&path, &bytes[..bytes.len() - cut]).unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            let long_ago = std::time::SystemTime::UNIX_EPOCH;
            file.set_modified(long_ago).unwrap();
            check(folder.path()).unwrap();
            let whole = std::fs::read(&path).unwrap();
            assert!(bytes.starts_with(&whole) && !whole.is_empty());
            assert!(file.metadata().unwrap().modified().unwrap() > long_ago);
        }
    }

    #[test]
    fn a_torn_end_is_no_damage() {
        let (folder, path, bytes) = written();
        for cut in [1, 5, 13, 14, 200, 330] {
            std::fs::write(&path, &bytes[..bytes.len() - cut]).unwrap();
            check(folder.path()).unwrap();
        }
    }

    #[test]
    fn a_flip_before_the_last_batch_is_damage() {
        let (folder, path, bytes) = written();
        for place in (0..bytes.len() - 400).step_by(7) {
            let mut flipped = bytes.clone();
            flipped[place] ^= 1 << (place % 8);
            std::fs::write(&path, &flipped).unwrap();
            let checked = check(folder.path());
            assert!(
                matches!(checked, Err(EngineError::Damaged { .. })),
                "byte {place}"
            );
        }
    }

    mod fuzz {
        use super::*;

        /// Where each whole batch ends.
        fn ends(mut bytes: &[u8]) -> Vec<u64> {
            let (mut ends, mut at) = (Vec::new(), 0);
            while let Ok(Some(batch)) = read_batch(&mut bytes) {
                at += batch.length;
                ends.push(at);
            }
            ends
        }

        /// Damage is never taken for a whole batch, nor does it hide those before it.
        #[test]
        fn fjall_journal() {
            let (_folder, _, whole) = written();
            let written = ends(&whole);
            let target = homeserver_fuzz::Target::new("fjall_journal");
            target.seeds([whole.clone()]).run(|input| {
                let found = ends(input);
                assert!(found.iter().all(|end| *end <= input.len() as u64));
                let same = input.iter().zip(&whole).take_while(|(a, b)| a == b).count() as u64;
                let until = |ends: &[u64]| ends.partition_point(|end| *end <= same);
                assert_eq!(found[..until(&found)], written[..until(&written)]);
                !found.is_empty()
            });
        }
    }
}
