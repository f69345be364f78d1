// SPDX-License-Identifier: Apache-2.0
//! Tar streams on their way in and out: read header by header and written anew, so that what comes
//! out is plain, whatever came in. Files, folders and links only; no name leads out of the tree, nor
//! through a link of the same archive; nothing is held but one header's text.

use bytes::{Buf, Bytes, BytesMut};
use postern_common::tree;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};

const BLOCK: usize = 512;
/// A name or a set of attributes that an archive gives beside a header.
const TEXT_BYTES: u64 = 64 << 10;
/// Entries of one archive, and links that are remembered.
const ENTRIES: u64 = 1_000_000;
const LINKS: usize = 100_000;
/// The longest target of a link (`PATH_MAX` of Linux).
const TARGET_BYTES: usize = 4096;

/// Why an archive is not passed on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the archive {0}")]
pub(super) struct Refused(String);

fn refused(why: impl Into<String>) -> Refused {
    Refused(why.into())
}

/// Where in the archive it is.
#[derive(Debug)]
enum State {
    Header,
    /// Bytes of a file: passed on.
    Content {
        left: u64,
        padding: usize,
    },
    /// Text about the next entry: collected.
    Text {
        kind: EntryType,
        left: u64,
        padding: usize,
    },
    /// After its end: dropped.
    Over,
}

/// A sieve for one archive.
#[derive(Debug)]
pub(super) struct Sieve {
    state: State,
    unread: BytesMut,
    text: Vec<u8>,
    about: About,
    links: HashSet<PathBuf>,
    entries: u64,
}

/// What was said about the next entry before its header.
#[derive(Debug, Default)]
struct About {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Sieve {
    pub(super) fn new() -> Self {
        Self {
            state: State::Header,
            unread: BytesMut::new(),
            text: Vec::new(),
            about: About::default(),
            links: HashSet::new(),
            entries: 0,
        }
    }

    /// Takes what came; what is to be passed on is returned.
    pub(super) fn push(&mut self, bytes: &Bytes) -> Result<Bytes, Refused> {
        self.unread.extend_from_slice(bytes);
        let mut out = BytesMut::new();
        while self.step(&mut out)? {}
        Ok(out.freeze())
    }

    /// The archive's last bytes, once all of it came.
    pub(super) fn finish(&self) -> Result<Bytes, Refused> {
        let is_whole = match self.state {
            // Some programs leave the end mark out.
            State::Header => self.unread.is_empty() && self.about.path.is_none(),
            State::Over => true,
            State::Content { .. } | State::Text { .. } => false,
        };
        if !is_whole {
            return Err(refused("ends in the middle of an entry"));
        }
        Ok(Bytes::from_static(&[0; 2 * BLOCK]))
    }

    /// One step; `false` if it takes more bytes.
    fn step(&mut self, out: &mut BytesMut) -> Result<bool, Refused> {
        match &mut self.state {
            State::Over => {
                self.unread.clear();
                Ok(false)
            }
            State::Header if self.unread.len() < BLOCK => Ok(false),
            State::Header => {
                let block = self.unread.split_to(BLOCK);
                self.header(&block, out)?;
                Ok(true)
            }
            State::Content { left: 0, padding } | State::Text { left: 0, padding, .. }
                if self.unread.len() < *padding =>
            {
                Ok(false)
            }
            State::Content { left: 0, padding } => {
                self.unread.advance(*padding);
                out.resize(out.len() + *padding, 0);
                self.state = State::Header;
                Ok(true)
            }
            State::Text { kind, left: 0, padding } => {
                self.unread.advance(*padding);
                let kind = *kind;
                self.state = State::Header;
                self.said(kind)?;
                Ok(true)
            }
            State::Content { left, .. } | State::Text { left, .. } if self.unread.is_empty() => {
                Ok(*left == 0)
            }
            State::Content { left, .. } => {
                let length = usize::try_from(*left).unwrap_or(usize::MAX).min(self.unread.len());
                out.extend_from_slice(&self.unread.split_to(length));
                *left -= u64::try_from(length).unwrap_or(*left);
                Ok(true)
            }
            State::Text { left, .. } => {
                let length = usize::try_from(*left).unwrap_or(usize::MAX).min(self.unread.len());
                self.text.extend_from_slice(&self.unread.split_to(length));
                *left -= u64::try_from(length).unwrap_or(*left);
                Ok(true)
            }
        }
    }

    fn header(&mut self, block: &[u8], out: &mut BytesMut) -> Result<(), Refused> {
        if block.iter().all(|byte| *byte == 0) {
            self.state = State::Over;
            return Ok(());
        }
        let header = Header::from_byte_slice(block);
        if header.cksum().ok() != Some(sum(block)) {
            return Err(refused("is none: a header's checksum is wrong"));
        }
        let size = header.entry_size().map_err(|_odd| refused("has an entry of no length"))?;
        let kind = header.entry_type();
        if matches!(
            kind,
            EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader | EntryType::XGlobalHeader
        ) {
            if size > TEXT_BYTES {
                return Err(refused("has a name or attributes of more than 64 KiB"));
            }
            self.text.clear();
            self.state = State::Text { kind, left: size, padding: padding(size) };
            return Ok(());
        }
        self.entries += 1;
        if self.entries > ENTRIES {
            return Err(refused("has more than a million entries"));
        }
        let about = std::mem::take(&mut self.about);
        let name = about.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let shown = String::from_utf8_lossy(&name).escape_default().to_string();
        let path =
            tree::inside(&name).map_err(|why| refused(format!("has the entry `{shown}`, which {why}")))?;
        if path.ancestors().skip(1).any(|folder| self.links.contains(folder)) {
            return Err(refused(format!("has the entry `{shown}`, which leads through a link")));
        }
        let target = about.target.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
        let entry = Entry { path, target, size: about.size.unwrap_or(size), header };
        let size =
            self.write(entry, out).map_err(|why| refused(format!("has the entry `{shown}`, which {why}")))?;
        self.state = State::Content { left: size, padding: padding(size) };
        Ok(())
    }

    /// Writes an entry's header anew; how many bytes of content come after it.
    fn write(&mut self, entry: Entry<'_>, out: &mut BytesMut) -> Result<u64, &'static str> {
        let Entry { path, target, size, header } = entry;
        if path.as_os_str().is_empty() {
            // The tree's own folder is there anyway.
            return if size == 0 { Ok(0) } else { Err("is the tree itself and has content") };
        }
        let mut ours = Header::new_gnu();
        ours.set_mode(header.mode().unwrap_or(0o644) & 0o777);
        ours.set_mtime(header.mtime().unwrap_or(0));
        ours.set_size(size);
        let mut writer = Builder::new(Vec::new());
        let has_content = size != 0;
        let written = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous => {
                ours.set_entry_type(EntryType::Regular);
                writer.append_data(&mut ours, &path, io::empty())
            }
            _ if has_content => return Err("is no file and has content"),
            EntryType::Directory => {
                ours.set_entry_type(EntryType::Directory);
                writer.append_data(&mut ours, &path, io::empty())
            }
            EntryType::Symlink => {
                let target = target.filter(|target| {
                    !target.is_empty() && target.len() <= TARGET_BYTES && !target.contains(&0)
                });
                let target = target.ok_or("is a link to nothing that could be")?;
                if self.links.len() >= LINKS {
                    return Err("is one link too many: there are 100,000");
                }
                self.links.insert(path.clone());
                ours.set_entry_type(EntryType::Symlink);
                writer.append_link(&mut ours, &path, Path::new(OsStr::from_bytes(&target)))
            }
            EntryType::Link => {
                let target = tree::inside(&target.ok_or("is a link to nothing")?)?;
                if target.ancestors().any(|part| self.links.contains(part)) {
                    return Err("is a link through a link");
                }
                ours.set_entry_type(EntryType::Link);
                writer.append_link(&mut ours, &path, &target)
            }
            _ => return Err("is neither file, folder nor link"),
        };
        // What is not a link any more can be gone through.
        if header.entry_type() != EntryType::Symlink {
            self.links.remove(&path);
        }
        written.map_err(|_odd| "has a name that cannot be written")?;
        // As it is now: the end mark comes when a builder is finished.
        out.extend_from_slice(writer.get_ref());
        Ok(size)
    }

    /// Takes in what was said about the next entry.
    fn said(&mut self, kind: EntryType) -> Result<(), Refused> {
        let text = std::mem::take(&mut self.text);
        match kind {
            EntryType::GNULongName => self.about.path = Some(until_zero(text)),
            EntryType::GNULongLink => self.about.target = Some(until_zero(text)),
            EntryType::XHeader => {
                for (key, value) in
                    records(&text).ok_or_else(|| refused("has attributes that cannot be read"))?
                {
                    match key {
                        b"path" => self.about.path = Some(value.to_vec()),
                        b"linkpath" => self.about.target = Some(value.to_vec()),
                        b"size" => {
                            let size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                            self.about.size = Some(size.ok_or_else(|| refused("has an entry of no length"))?);
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// An entry as it is understood.
struct Entry<'a> {
    path: PathBuf,
    target: Option<Vec<u8>>,
    size: u64,
    header: &'a Header,
}

fn padding(size: u64) -> usize {
    let block = BLOCK as u64;
    usize::try_from((block - size % block) % block).unwrap_or(0)
}

/// A header's checksum: its bytes, the checksum's own counting as blanks.
fn sum(block: &[u8]) -> u32 {
    let at = |place: usize, byte: u8| if (148..156).contains(&place) { b' ' } else { byte };
    block.iter().enumerate().map(|(place, byte)| u32::from(at(place, *byte))).sum()
}

fn until_zero(mut text: Vec<u8>) -> Vec<u8> {
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    text.truncate(end);
    text
}

/// Records of pax: `LENGTH KEY=VALUE` and a line break, the length counting itself.
fn records(mut text: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut found = Vec::new();
    while !text.is_empty() {
        let blank = text.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(text.get(..blank)?).ok()?.parse().ok()?;
        let record = text.get(blank + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        found.push((record.get(..equals)?, record.get(equals + 1..)?));
        text = text.get(length..)?;
    }
    Some(found)
}

#[cfg(test)]
mod tests;
