// SPDX-License-Identifier: Apache-2.0
//! What this program carries, read from its file and not from its memory.
//!
//! A page of our own file that was looked at in memory counts as ours for as long as we run: with all
//! that is embedded, tens of megabytes. What is read by calls stays in the machine's cache alone.

use std::fs::{self, File};
use std::io::{self, Read, Seek as _, SeekFrom};
use std::ops::Range;
use std::path::Path;

/// What is read at a time.
const CHUNK: usize = 64 << 10;

/// Hands over what `content` holds, a part at a time.
///
/// # Errors
/// What the system said when this program's file was read.
pub(super) fn each_part(content: &[u8], mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let (mut from, mut buffer) = (reader(content), vec![0; CHUNK]);
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        take(buffer.get(..read).unwrap_or_default());
    }
}

/// Whether the file at `path` holds just this.
///
/// # Errors
/// What the system said, of either file.
pub(super) fn is_at(content: &[u8], path: &Path) -> io::Result<bool> {
    let mut found = File::open(path)?;
    if found.metadata()?.len() != content.len() as u64 {
        return Ok(false);
    }
    let (mut from, mut compared) = (reader(content), 0);
    let (mut ours, mut theirs) = (vec![0; CHUNK], vec![0; CHUNK]);
    loop {
        let read = from.read(&mut ours)?;
        if read == 0 {
            return Ok(compared == content.len());
        }
        let theirs = theirs.get_mut(..read).unwrap_or_default();
        found.read_exact(theirs)?;
        if ours.get(..read) != Some(&*theirs) {
            return Ok(false);
        }
        compared += read;
    }
}

/// Writes it to a file.
///
/// # Errors
/// What the system said; or that this program's file is shorter than it was.
pub(super) fn write(content: &[u8], to: &mut File) -> io::Result<()> {
    let written = io::copy(&mut reader(content), to)?;
    if written == content.len() as u64 { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Where it is not known where it lies in the file, it is read in memory.
fn reader(content: &[u8]) -> Box<dyn Read + '_> {
    match in_file(content) {
        Some(file) => Box::new(file.take(content.len() as u64)),
        None => Box::new(content),
    }
}

/// The file that this program runs from, where `content` begins in it.
fn in_file(content: &[u8]) -> Option<File> {
    // The one that runs, also if another has taken its place.
    let mut own = File::open("/proc/self/exe").ok()?;
    let path = fs::read_link("/proc/self/exe").ok()?;
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let begin = u64::try_from(content.as_ptr().addr()).ok()?;
    let end = begin.checked_add(u64::try_from(content.len()).ok()?)?;
    let place = maps.lines().find_map(|line| Mapping::read(line)?.place(path.to_str()?, &(begin..end)))?;
    own.seek(SeekFrom::Start(place)).ok()?;
    Some(own)
}

/// A line of `/proc/self/maps` (proc(5)): `begin-end permissions offset device inode path`.
struct Mapping<'a> {
    at: Range<u64>,
    is_writable: bool,
    offset: u64,
    path: &'a str,
}

impl<'a> Mapping<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let hexadecimal = |text: &str| u64::from_str_radix(text, 16).ok();
        let (at, rest) = line.split_once(' ')?;
        let (permissions, rest) = rest.split_once(' ')?;
        let (offset, rest) = rest.split_once(' ')?;
        let (_device, rest) = rest.split_once(' ')?;
        let (_inode, path) = rest.split_once(' ')?;
        let (begin, end) = at.split_once('-')?;
        Some(Self {
            at: hexadecimal(begin)?..hexadecimal(end)?,
            is_writable: permissions.contains('w'),
            offset: hexadecimal(offset)?,
            path: path.trim_start(),
        })
    }

    /// Where the file has what is at these addresses, if all of them are in here and nobody could have
    /// changed what is there.
    fn place(&self, path: &str, addresses: &Range<u64>) -> Option<u64> {
        let is_within = self.at.start <= addresses.start && addresses.end <= self.at.end;
        let is_it = is_within && !self.is_writable && self.path == path;
        is_it.then(|| self.offset + (addresses.start - self.at.start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than a part, and not the same throughout.
    static CARRIED: &[u8] = include_bytes!("../../../../Cargo.lock");

    fn read(content: &[u8]) -> Vec<u8> {
        let mut all = Vec::new();
        each_part(content, |part| all.extend_from_slice(part)).expect("reads");
        all
    }

    #[test]
    fn what_is_carried_is_found_in_this_programs_file() {
        assert!(CARRIED.len() > 2 * CHUNK, "the control: it takes several parts");
        let mut found = Vec::new();
        let file = in_file(CARRIED).expect("lies in the program that runs");
        file.take(CARRIED.len() as u64).read_to_end(&mut found).expect("reads");
        assert!(found == CARRIED, "the file has at that place what memory has");
        assert!(read(CARRIED) == CARRIED);
        let middle = CARRIED.get(1000..2000).expect("is longer");
        assert!(in_file(middle).is_some() && read(middle) == middle);
    }

    #[test]
    fn what_lies_elsewhere_is_read_all_the_same() {
        let made = CARRIED.to_vec();
        assert!(in_file(&made).is_none(), "it is in no file");
        assert!(read(&made) == made);
        assert_eq!(read(b""), b"");
    }

    #[test]
    fn a_file_is_the_same_only_if_all_of_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("written");
        write(CARRIED, &mut File::create(&path).expect("makes")).expect("writes");
        assert!(fs::read(&path).expect("reads") == CARRIED);
        assert!(is_at(CARRIED, &path).expect("reads"));
        let mut other = CARRIED.to_vec();
        *other.last_mut().expect("is not empty") ^= 1;
        fs::write(&path, &other).expect("writes");
        assert!(!is_at(CARRIED, &path).expect("reads"), "its last byte is another");
        fs::write(&path, [CARRIED, b"more"].concat()).expect("writes");
        assert!(!is_at(CARRIED, &path).expect("reads"), "it has more");
        is_at(CARRIED, &folder.path().join("none")).expect_err("is not there");
    }

    #[test]
    fn only_what_cannot_have_changed_is_taken_from_the_file() {
        let line = "1000-3000 r--p 00000200 fe:00 42                 /opt/our programs/postern (deleted)";
        let mapping = Mapping::read(line).expect("is a line");
        let path = "/opt/our programs/postern (deleted)";
        assert_eq!(mapping.place(path, &(0x1010..0x3000)), Some(0x210));
        assert_eq!(mapping.place(path, &(0x1010..0x3001)), None, "it goes on elsewhere");
        assert_eq!(mapping.place(path, &(0xfff..0x2000)), None, "it begins elsewhere");
        assert_eq!(mapping.place("/opt/postern", &(0x1010..0x2000)), None, "of another file");
        let writable = Mapping::read("1000-3000 rw-p 00000200 fe:00 42 /postern").expect("is a line");
        assert_eq!(writable.place("/postern", &(0x1010..0x2000)), None);
        let nameless = Mapping::read("1000-3000 r--p 00000000 00:00 0 ").expect("is a line");
        assert_eq!(nameless.place("/postern", &(0x1010..0x2000)), None);
        assert!(Mapping::read("").is_none() && Mapping::read("x-y r--p 0 0 0 /p").is_none());
    }
}
