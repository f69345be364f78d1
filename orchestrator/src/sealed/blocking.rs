// SPDX-License-Identifier: Apache-2.0
//! [`super::Pieces`] over files, for who has a thread of its own, and by as many threads as there are processors
//! for them: each piece has a place of its own in both files.
//!
//! A piece is read, sealed or opened where it lies, and written: nothing of it is copied.

use super::{HEAD_BYTES, Label, PIECE_BYTES, Pieces};
use crate::seal::{DataKey, SealError, TAG_BYTES, TEXT_AT};
use postern_common::secret::Secret;
use rustix::fs::{Advice, fadvise};
use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

/// How far pieces lie apart in a sealed file.
const STRIDE_BYTES: usize = HEAD_BYTES + TEXT_AT + PIECE_BYTES + TAG_BYTES;
/// Threads for one file, the caller's included. More are not faster than memory is.
const HANDS: usize = 4;
/// After so many pieces the disk is told to begin.
const BEGIN_PIECES: u64 = 8;

/// Whether nobody waits any more for what a thread does: it ends with the next piece.
#[derive(Debug, Clone, Default)]
pub(crate) struct Left(Arc<AtomicBool>);

impl Left {
    fn check(&self) -> io::Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    }
}

/// Whoever waits: dropped, it has left.
#[derive(Debug, Default)]
pub(crate) struct Waiting(pub(crate) Left);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// A sealed file that may not be on the disk yet.
#[derive(Debug)]
pub(crate) struct Written {
    file: File,
    /// How long it was before.
    pub(crate) size_bytes: u64,
}

impl Written {
    /// It is on the disk when this returns.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

/// Seals all of a file, which nobody writes any more, into a new one.
pub(crate) fn seal(
    key: &DataKey,
    label: &Label,
    (from, to): (&Path, &Path),
    left: &Left,
) -> io::Result<Written> {
    let from = File::open(from)?;
    let to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    let about = from.metadata()?;
    if !about.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let size_bytes = about.len();
    // An empty file is one empty piece.
    let count = size_bytes.div_ceil(as_u64(PIECE_BYTES)).max(1);
    for_each(count, left, |number, buffer| {
        let is_last = number + 1 == count;
        let at = number * as_u64(PIECE_BYTES);
        let length = part(size_bytes - at, PIECE_BYTES);
        let whole = buffer.get_mut(..HEAD_BYTES + TEXT_AT + length + TAG_BYTES).ok_or_else(damaged)?;
        let (head, sealed) = whole.split_first_chunk_mut::<HEAD_BYTES>().ok_or_else(damaged)?;
        *head = Pieces::head_of(sealed.len(), is_last).map_err(io::Error::other)?;
        from.read_exact_at(sealed.get_mut(TEXT_AT..TEXT_AT + length).ok_or_else(damaged)?, at)?;
        let done = label.placed(number, is_last, |place| key.seal_in_place(place, sealed));
        done.map_err(io::Error::other)?;
        to.write_all_at(whole, number * as_u64(STRIDE_BYTES))?;
        if is_last || number % BEGIN_PIECES == BEGIN_PIECES - 1 {
            begin_writing(&to, number);
        }
        Ok(())
    })?;
    Ok(Written { file: to, size_bytes })
}

/// Has the disk begin with the pieces up to this one while the next are sealed. It is a hint; what it does not heed is
/// waited for by [`Written::sync`].
fn begin_writing(file: &File, number: u64) {
    let first = number - number % BEGIN_PIECES;
    let length = NonZeroU64::new(BEGIN_PIECES * as_u64(STRIDE_BYTES));
    // What is not on the disk stays in memory for a wake that comes soon.
    let _ = fadvise(file, first * as_u64(STRIDE_BYTES), length, Advice::DontNeed).is_ok();
}

/// Opens a sealed file into a new one, all of it or none that is of use.
pub(crate) fn open(key: &DataKey, label: &Label, (from, to): (&Path, &Path), left: &Left) -> io::Result<()> {
    let from = File::open(from)?;
    let to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    let size_bytes = from.metadata()?.len();
    let count = size_bytes.div_ceil(as_u64(STRIDE_BYTES));
    if count == 0 {
        return Err(damaged());
    }
    for_each(count, left, |number, buffer| {
        let is_last = number + 1 == count;
        let at = number * as_u64(STRIDE_BYTES);
        let whole = buffer.get_mut(..part(size_bytes - at, STRIDE_BYTES)).ok_or_else(damaged)?;
        from.read_exact_at(whole, at)?;
        let (head, sealed) = whole.split_first_chunk_mut::<HEAD_BYTES>().ok_or_else(damaged)?;
        let said = Pieces::head(*head).map_err(io::Error::other)?;
        // INVARIANT: a piece is opened for its number, and for the last or not by where the file ends. What was
        // moved, left out or cut short is not what was sealed.
        if said != (sealed.len(), is_last) {
            return Err(damaged());
        }
        let text = label.placed(number, is_last, move |place| key.open_in_place(place, sealed));
        to.write_all_at(text.map_err(io::Error::other)?, number * as_u64(PIECE_BYTES))
    })
}

/// Room for a piece. What was in it last may be a part of a memory.
struct Room(Vec<u8>);

impl Drop for Room {
    fn drop(&mut self) {
        // Wiped.
        drop(Secret::new(std::mem::take(&mut self.0)));
    }
}

/// Does something for each of so many pieces, in any order; ends soon after the first error.
fn for_each(
    count: u64,
    left: &Left,
    act: impl Fn(u64, &mut [u8]) -> io::Result<()> + Sync,
) -> io::Result<()> {
    let (next, has_failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let work = || -> io::Result<()> {
        let mut room = Room(vec![0; STRIDE_BYTES]);
        loop {
            left.check()?;
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count || has_failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            act(number, &mut room.0).inspect_err(|_error| has_failed.store(true, Ordering::Relaxed))?;
        }
    };
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let helpers = part(count, processors.min(HANDS)) - 1;
    thread::scope(|scope| {
        // Where there are no more threads to be had, fewer do it.
        let spawn = |_number| thread::Builder::new().spawn_scoped(scope, work).ok();
        let helping: Vec<_> = (0..helpers).filter_map(spawn).collect();
        let mut done = work();
        for helper in helping {
            let helped = helper.join().unwrap_or_else(|_panicked| Err(damaged()));
            done = done.and(helped);
        }
        done
    })
}

fn damaged() -> io::Error {
    io::Error::other(SealError::Damaged)
}

fn as_u64(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// What is left, but no more than this.
fn part(left: u64, most: usize) -> usize {
    usize::try_from(left).map_or(most, |left| left.min(most))
}
