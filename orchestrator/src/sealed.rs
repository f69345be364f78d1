// SPDX-License-Identifier: Apache-2.0
//! Files that are sealed piece by piece: the archives of snapshots and pictures of memory.
//!
//! ```text
//! head (32 bits: length, and the highest bit if it is the last) · sealed piece · head · sealed piece …
//! ```
//!
//! Each piece is sealed for its place: tenant, user, thing, part, number, and whether it is the last. So
//! no piece can be moved, left out or taken for another's, and a file that was cut short does not open.

pub(crate) mod blocking;

use crate::seal::{DataKey, Place, SealError};
use bytes::Bytes;
use postern_common::id::{TenantId, UserId};
use std::sync::Arc;

/// What is sealed at a time.
pub(crate) const PIECE_BYTES: usize = 1 << 20;
/// A sealed piece is a little longer.
const SEALED_BYTES: usize = PIECE_BYTES + 256;
/// Bytes of a head.
pub(crate) const HEAD_BYTES: usize = 4;
const LAST: u32 = 1 << 31;

/// What kind of thing a file belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A snapshot.
    Snapshot,
    /// A sandbox's memory.
    Memory,
}

/// What a file is, and whose.
#[derive(Debug, Clone)]
pub(crate) struct Label {
    /// What it belongs to.
    pub(crate) kind: Kind,
    /// Whose tenant's.
    pub(crate) tenant: TenantId,
    /// Whose.
    pub(crate) user: UserId,
    /// Of which thing it is a part.
    pub(crate) thing: String,
    /// Which part.
    pub(crate) part: &'static str,
}

impl Label {
    /// Does something for the place of one of its pieces.
    fn placed<Done>(
        &self,
        number: u64,
        is_last: bool,
        act: impl FnOnce(Place<'_>) -> Result<Done, SealError>,
    ) -> Result<Done, SealError> {
        let Self { kind, tenant, user, thing, part } = self;
        // No id holds a line break.
        let piece = format!("{user}\n{thing}\n{part}\n{number}\n{is_last}");
        let (tenant, piece) = (tenant.as_str(), piece.as_str());
        act(match kind {
            Kind::Snapshot => Place::Snapshot { tenant, piece },
            Kind::Memory => Place::Memory { tenant, piece },
        })
    }
}

/// Seals or opens the pieces of one file, in order.
#[derive(Debug)]
pub(crate) struct Pieces {
    key: Arc<DataKey>,
    label: Label,
    number: u64,
}

impl Pieces {
    /// The pieces of a file, from its beginning.
    #[must_use]
    pub(crate) fn of(key: &Arc<DataKey>, label: Label) -> Self {
        Self { key: Arc::clone(key), label, number: 0 }
    }

    /// The next piece, sealed, with its head.
    ///
    /// # Errors
    /// [`SealError`].
    pub(crate) fn seal(&mut self, piece: &[u8], is_last: bool) -> Result<Vec<u8>, SealError> {
        let sealed = self.label.placed(self.number, is_last, |place| self.key.seal(place, piece))?;
        let head = Self::head_of(sealed.len(), is_last)?;
        self.number += 1;
        Ok([&head, sealed.as_slice()].concat())
    }

    /// The head of a sealed piece. A lie about its highest bit does not open.
    fn head_of(length: usize, is_last: bool) -> Result<[u8; HEAD_BYTES], SealError> {
        let length = u32::try_from(length).map_err(|_long| SealError::Damaged)?;
        Ok((length | if is_last { LAST } else { 0 }).to_be_bytes())
    }

    /// What a head says of the piece that follows: its length, and whether it is the last.
    ///
    /// # Errors
    /// [`SealError::Damaged`] if no piece is so long.
    pub(crate) fn head(bytes: [u8; HEAD_BYTES]) -> Result<(usize, bool), SealError> {
        let head = u32::from_be_bytes(bytes);
        let length = usize::try_from(head & !LAST).unwrap_or(usize::MAX);
        if length > SEALED_BYTES { Err(SealError::Damaged) } else { Ok((length, head & LAST != 0)) }
    }

    /// The next piece, opened.
    ///
    /// # Errors
    /// [`SealError`], also if it belongs elsewhere.
    pub(crate) fn open(&mut self, sealed: &[u8], is_last: bool) -> Result<Bytes, SealError> {
        let opened = self.label.placed(self.number, is_last, |place| self.key.open(place, sealed))?;
        self.number += 1;
        Ok(Bytes::copy_from_slice(opened.reveal()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::KEY_BYTES;
    use postern_common::secret::Secret;
    use std::path::Path;
    use std::{fs, io};

    fn key(byte: u8) -> Arc<DataKey> {
        Arc::new(DataKey::new(&Secret::new(vec![byte; KEY_BYTES])).expect("a key"))
    }

    fn label(kind: Kind, tenant: &str, user: &str, thing: &str) -> Label {
        let (tenant, user) = (tenant.parse().expect("valid"), user.parse().expect("valid"));
        Label { kind, tenant, user, thing: thing.to_owned(), part: "pages" }
    }

    fn own() -> Label {
        label(Kind::Memory, "acme", "alice", "sandbox-aaaaaaaaaaaa\n1")
    }

    fn seal(key: &Arc<DataKey>, label: &Label, from: &Path, to: &Path) -> io::Result<u64> {
        let sealed = blocking::seal(key, label, (from, to), &blocking::Left::default())?;
        sealed.sync().map(|()| sealed.size_bytes)
    }

    fn open(key: &Arc<DataKey>, label: &Label, from: &Path, to: &Path) -> io::Result<()> {
        blocking::open(key, label, (from, to), &blocking::Left::default())
    }

    #[test]
    fn a_sealed_file_opens_at_its_place_and_nowhere_else() {
        let key = key(1);
        let here = tempfile::tempdir().expect("a folder");
        let at = |name: &str| here.path().join(name);
        let content: Vec<u8> =
            (0..PIECE_BYTES * 2 + 17).map(|at| u8::try_from(at % 251).expect("fits")).collect();
        fs::write(at("plain"), &content).expect("writes");
        let size = seal(&key, &own(), &at("plain"), &at("sealed")).expect("seals");
        assert_eq!(size, u64::try_from(content.len()).expect("fits"));
        let sealed = fs::read(at("sealed")).expect("reads");
        assert!(!sealed.windows(64).any(|window| window == &content[..64]), "nothing of it can be read");
        open(&key, &own(), &at("sealed"), &at("opened")).expect("opens");
        assert!(fs::read(at("opened")).expect("reads") == content);
        for (place, other) in [
            ("another tenant", label(Kind::Memory, "evil", "alice", "sandbox-aaaaaaaaaaaa\n1")),
            ("another user", label(Kind::Memory, "acme", "mallory", "sandbox-aaaaaaaaaaaa\n1")),
            ("another sandbox", label(Kind::Memory, "acme", "alice", "sandbox-bbbbbbbbbbbb\n1")),
            ("an older picture", label(Kind::Memory, "acme", "alice", "sandbox-aaaaaaaaaaaa\n2")),
            ("a snapshot", label(Kind::Snapshot, "acme", "alice", "sandbox-aaaaaaaaaaaa\n1")),
            ("another part", Label { part: "state", ..own() }),
        ] {
            let opened = open(&key, &other, &at("sealed"), &at("stolen"));
            assert!(opened.is_err(), "{place} opens it");
            assert_eq!(fs::read(at("stolen")).expect("was begun").len(), 0, "{place} gets a part of it");
            fs::remove_file(at("stolen")).expect("removes");
        }
        let other = Arc::new(DataKey::new(&Secret::new(vec![2; KEY_BYTES])).expect("a key"));
        assert!(open(&other, &own(), &at("sealed"), &at("x")).is_err(), "another installation");
    }

    #[test]
    fn what_was_cut_short_or_put_together_anew_does_not_open() {
        let key = key(1);
        let here = tempfile::tempdir().expect("a folder");
        let at = |name: &str| here.path().join(name);
        fs::write(at("plain"), vec![7; PIECE_BYTES * 3]).expect("writes");
        let size = seal(&key, &own(), &at("plain"), &at("sealed")).expect("seals");
        assert_eq!(size, u64::try_from(PIECE_BYTES * 3).expect("fits"));
        let sealed = fs::read(at("sealed")).expect("reads");
        let one = sealed.len() / 3;
        let [first, second, third] = [&sealed[..one], &sealed[one..2 * one], &sealed[2 * one..]];
        let mut said_last = [first, second].concat();
        said_last[one] |= 0x80;
        for (how, wrong) in [
            ("cut", [first, second].concat()),
            ("cut, and said to be all", said_last),
            ("swapped", [second, first, third].concat()),
            ("one left out", [first, third].concat()),
            ("one twice", [first, first, second, third].concat()),
            ("too long", [&[0x7f, 0xff, 0xff, 0xff][..], first].concat()),
            ("empty", Vec::new()),
        ] {
            fs::write(at("wrong"), wrong).expect("writes");
            assert!(open(&key, &own(), &at("wrong"), &at(how)).is_err(), "{how}");
        }
    }

    /// As snapshots' archives are sealed, and pictures were before many threads did it.
    #[test]
    fn sealed_by_many_threads_or_by_one_it_is_the_same_form() {
        let (key, here) = (key(1), tempfile::tempdir().expect("a folder"));
        let at = |name: &str| here.path().join(name);
        let content: Vec<u8> =
            (0..PIECE_BYTES * 19 + 5).map(|at| u8::try_from(at % 249).expect("fits")).collect();
        fs::write(at("plain"), &content).expect("writes");
        let (mut pieces, mut by_one) = (Pieces::of(&key, own()), Vec::new());
        let mut parts = content.chunks(PIECE_BYTES).peekable();
        while let Some(part) = parts.next() {
            by_one.extend(pieces.seal(part, parts.peek().is_none()).expect("seals"));
        }
        fs::write(at("by one"), &by_one).expect("writes");
        open(&key, &own(), &at("by one"), &at("opened")).expect("opens");
        assert!(fs::read(at("opened")).expect("reads") == content);

        seal(&key, &own(), &at("plain"), &at("by many")).expect("seals");
        let by_many = fs::read(at("by many")).expect("reads");
        assert_eq!(by_many.len(), by_one.len());
        let (mut pieces, mut rest, mut opened) = (Pieces::of(&key, own()), &by_many[..], Vec::new());
        while let Some((head, behind)) = rest.split_first_chunk() {
            let (length, is_last) = Pieces::head(*head).expect("a head");
            assert_eq!(is_last, behind.len() == length, "the last says so, and no other");
            opened.extend(pieces.open(&behind[..length], is_last).expect("opens"));
            rest = &behind[length..];
        }
        assert!(opened == content);
    }

    #[test]
    fn one_changed_bit_anywhere_is_noticed() {
        let (key, here) = (key(1), tempfile::tempdir().expect("a folder"));
        let at = |name: &str| here.path().join(name);
        fs::write(at("plain"), vec![7; PIECE_BYTES * 5 + 1]).expect("writes");
        seal(&key, &own(), &at("plain"), &at("sealed")).expect("seals");
        let sealed = fs::read(at("sealed")).expect("reads");
        let one = (sealed.len() - 1) / 5;
        for (number, place) in [0, 4, 5, 30, one + 3, 3 * one, sealed.len() - 1].into_iter().enumerate() {
            let mut changed = sealed.clone();
            changed[place] ^= 1;
            fs::write(at("changed"), &changed).expect("writes");
            assert!(open(&key, &own(), &at("changed"), &at(&number.to_string())).is_err(), "at {place}");
        }
    }

    #[test]
    fn what_nobody_waits_for_any_more_ends() {
        let (key, here) = (key(1), tempfile::tempdir().expect("a folder"));
        let at = |name: &str| here.path().join(name);
        fs::write(at("plain"), "text").expect("writes");
        let waiting = blocking::Waiting::default();
        let left = waiting.0.clone();
        drop(blocking::seal(&key, &own(), (&at("plain"), &at("sealed")), &left).expect("seals"));
        drop(waiting);
        let ended = blocking::seal(&key, &own(), (&at("plain"), &at("another")), &left).expect_err("ends");
        assert_eq!(ended.kind(), io::ErrorKind::Interrupted);
        let ended = blocking::open(&key, &own(), (&at("sealed"), &at("opened")), &left).expect_err("ends");
        assert_eq!(ended.kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn an_empty_file_is_one_empty_piece() {
        let key = key(1);
        let here = tempfile::tempdir().expect("a folder");
        let at = |name: &str| here.path().join(name);
        fs::write(at("plain"), "").expect("writes");
        assert_eq!(seal(&key, &own(), &at("plain"), &at("sealed")).expect("seals"), 0);
        open(&key, &own(), &at("sealed"), &at("opened")).expect("opens");
        assert_eq!(fs::read(at("opened")).expect("reads"), b"");
    }
}
