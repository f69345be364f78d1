// SPDX-License-Identifier: Apache-2.0
//! Content on its way: a file into a pack, and out of a pack into a file. Blocking.

use aws_lc_rs::digest::{Context, SHA256};
use bytes::{BufMut as _, Bytes, BytesMut};
use postern_common::files::Digest;
use postern_common::files::pack::{put_data, put_end, put_hole};
use rustix::fs::{SeekFrom as Position, seek};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use tokio::sync::mpsc;

/// What is read at once, and what a part of a pack has at least, as long as there is more.
pub(crate) const CHUNK: usize = 128 << 10;
const ZEROS: [u8; 4096] = [0; 4096];

/// Computes a digest as content goes by.
pub(crate) struct Hash(Context);

impl Hash {
    pub(crate) fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Adds so many zeros.
    pub(crate) fn add_hole(&mut self, mut length: u64) {
        while length > 0 {
            let part = usize::try_from(length).unwrap_or(usize::MAX).min(ZEROS.len());
            self.0.update(ZEROS.get(..part).unwrap_or_default());
            length -= part as u64;
        }
    }

    pub(crate) fn end(self) -> Digest {
        let digest = self.0.finish();
        Digest(digest.as_ref().try_into().unwrap_or([0; 32]))
    }
}

/// The digest of what a file holds up to `size`; `None` if it cannot be read, or is shorter by now.
pub(crate) fn digest(file: &mut File, size: u64) -> Option<Digest> {
    let mut hash = Hash::new();
    file.seek(SeekFrom::Start(0)).ok()?;
    let mut buffer = vec![0; usize::try_from(size).unwrap_or(CHUNK).clamp(1, CHUNK)];
    let mut left = size;
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let read = match file.read(buffer.get_mut(..part)?) {
            Ok(0) => return None,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_unreadable) => return None,
        };
        hash.add(buffer.get(..read)?);
        left -= read as u64;
    }
    Some(hash.end())
}

/// Nobody takes the pack any more.
#[derive(Debug)]
pub(crate) struct NobodyReads;

/// A pack that goes out in parts of some size.
pub(crate) struct Outgoing {
    pub(crate) parts: BytesMut,
    to: mpsc::Sender<Bytes>,
}

impl Outgoing {
    pub(crate) fn new(to: mpsc::Sender<Bytes>) -> Self {
        Self { parts: BytesMut::with_capacity(CHUNK * 2), to }
    }

    /// Sends what there is if it is enough, or in any case.
    pub(crate) fn flush(&mut self, in_any_case: bool) -> Result<(), NobodyReads> {
        if self.parts.is_empty() || (!in_any_case && self.parts.len() < CHUNK) {
            return Ok(());
        }
        let parts = std::mem::replace(&mut self.parts, BytesMut::with_capacity(CHUNK * 2)).freeze();
        self.to.blocking_send(parts).map_err(|_closed| NobodyReads)
    }

    /// Puts a file's first `size` bytes as content and returns their digest; `None` if it broke off,
    /// which the other side is told. Where the file has holes there will be holes, if `is_sparse`.
    pub(crate) fn content(
        &mut self,
        file: &mut File,
        size: u64,
        is_sparse: bool,
    ) -> Result<Option<Digest>, NobodyReads> {
        let mut hash = Hash::new();
        let mut at = 0;
        while at < size {
            let Some((start, end)) = data_after(file, at, size, is_sparse) else {
                put_end(&mut self.parts, None);
                return Ok(None);
            };
            if start > at {
                put_hole(&mut self.parts, start - at);
                hash.add_hole(start - at);
            }
            if !self.data(file, (start, end), &mut hash)? {
                put_end(&mut self.parts, None);
                return Ok(None);
            }
            at = end;
        }
        let digest = hash.end();
        put_end(&mut self.parts, Some(&digest));
        Ok(Some(digest))
    }

    /// Makes what was just put one that broke off: it turned out not to count.
    pub(crate) fn take_back_end(&mut self) {
        /// What `put_end` has written, which is never sent before more follows.
        const END: usize = 1 + 32;
        self.parts.truncate(self.parts.len().saturating_sub(END));
        put_end(&mut self.parts, None);
    }

    /// Puts the bytes of a range; `false` if there were fewer.
    fn data(&mut self, file: &File, (mut at, end): (u64, u64), hash: &mut Hash) -> Result<bool, NobodyReads> {
        while at < end {
            self.flush(false)?;
            let part = usize::try_from(end - at).unwrap_or(usize::MAX).min(CHUNK);
            put_data(&mut self.parts, u32::try_from(part).unwrap_or(u32::MAX));
            let begin = self.parts.len();
            self.parts.put_bytes(0, part);
            let room = self.parts.get_mut(begin..).unwrap_or_default();
            let is_whole = file.read_exact_at(room, at).is_ok();
            hash.add(room);
            if !is_whole {
                // Zeros went out in its place; the end says that they do not count.
                return Ok(false);
            }
            at += part as u64;
        }
        Ok(true)
    }
}

/// The next range of data at or after `at`; `None` if it cannot be told.
fn data_after(file: &File, at: u64, size: u64, is_sparse: bool) -> Option<(u64, u64)> {
    if !is_sparse {
        return Some((at, size));
    }
    let start = match seek(file, Position::Data(at)) {
        Ok(start) => start.min(size),
        // Nothing but a hole is left.
        Err(Errno::NXIO) => return Some((size, size)),
        Err(_) => return None,
    };
    let end = seek(file, Position::Hole(start)).ok()?.min(size);
    Some((start, end.max(start)))
}

/// A file that content comes into.
pub(crate) struct Incoming<'a> {
    file: &'a File,
    at: u64,
    hash: Hash,
}

impl<'a> Incoming<'a> {
    /// Goes on at `at`; `hash` has seen what comes before.
    pub(crate) const fn new(file: &'a File, at: u64, hash: Hash) -> Self {
        Self { file, at, hash }
    }

    /// Takes bytes; those that are all zeros become a hole, whatever the store made of it.
    pub(crate) fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.iter().any(|byte| *byte != 0) {
            self.file.write_all_at(bytes, self.at)?;
        }
        self.hash.add(bytes);
        self.at += bytes.len() as u64;
        Ok(())
    }

    pub(crate) fn hole(&mut self, length: u64) {
        self.hash.add_hole(length);
        self.at = self.at.saturating_add(length);
    }

    /// Its length and digest.
    pub(crate) fn end(self) -> io::Result<(u64, Digest)> {
        if self.file.metadata()?.len() != self.at {
            // It ends in a hole.
            self.file.set_len(self.at)?;
        }
        Ok((self.at, self.hash.end()))
    }
}

#[cfg(test)]
mod tests;
