// SPDX-License-Identifier: Apache-2.0
//! Many files in one body: records one after the other, read as they come.
//!
//! ```text
//! pack    record*
//! record  'r' length:u32 head            without content
//!         'R' length:u32 head piece* end with content
//! piece   'd' length:u32 bytes | 'h' length:u64 (a hole)
//! end     'e' SHA-256 | 'x' (its writer broke off)
//! ```
//! Numbers are big-endian; heads are JSON. A pack that ends within a record is broken. Nothing here
//! holds more than one head: content is handed on in the parts in which it arrives.

use super::Digest;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use serde::Serialize;

/// The longest head: a path and a link's target, as JSON escapes them at worst, and some.
const HEAD_BYTES: usize = 64 << 10;
const LENGTH: usize = 4;
const HOLE: usize = 8;
const DIGEST: usize = 32;

/// Bytes that are no pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BrokenPack {
    /// A byte where none of its kind can be.
    #[error("the pack cannot be read")]
    Malformed,
    /// A head beyond all need.
    #[error("a record's head is too long")]
    HeadTooLong,
    /// The end came too early.
    #[error("the pack ends within a record")]
    Cut,
}

/// A part of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// A record begins.
    Head {
        /// What it is about.
        json: Bytes,
        /// Whether content follows, up to [`Part::End`].
        has_content: bool,
    },
    /// Bytes of the content.
    Data(Bytes),
    /// So many zeros that take no room.
    Hole(u64),
    /// The content is over: with its digest, or broken off by who sent it.
    End(Option<Digest>),
}

/// Reads a pack from the parts in which its bytes arrive.
#[derive(Debug, Default)]
pub struct Unpacker {
    /// What has arrived and was not read.
    come: Bytes,
    /// The beginning of what arrives in two parts.
    held: BytesMut,
    within: Within,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Within {
    #[default]
    Nothing,
    Content,
    Piece(usize),
}

impl Unpacker {
    /// Takes the next bytes; all that came before must have been read to `None`.
    pub fn feed(&mut self, bytes: Bytes) {
        if self.come.is_empty() {
            self.come = bytes;
        } else {
            // Never happens to a caller that keeps the rule; nothing is lost to one that does not.
            let mut both = BytesMut::from(&*self.come);
            both.put(bytes);
            self.come = both.freeze();
        }
    }

    /// The next part; `None` until more arrives.
    ///
    /// # Errors
    /// [`BrokenPack`]; nothing more can be read then.
    pub fn part(&mut self) -> Result<Option<Part>, BrokenPack> {
        match self.within {
            Within::Piece(left) => Ok(self.piece(left)),
            Within::Nothing => self.head(),
            Within::Content => self.content(),
        }
    }

    /// Whether a pack may end here.
    ///
    /// # Errors
    /// [`BrokenPack::Cut`] if not.
    pub fn end(&self) -> Result<(), BrokenPack> {
        let is_between = self.within == Within::Nothing && self.held.is_empty() && self.come.is_empty();
        if is_between { Ok(()) } else { Err(BrokenPack::Cut) }
    }

    fn piece(&mut self, left: usize) -> Option<Part> {
        if self.come.is_empty() {
            return None;
        }
        let data = self.come.split_to(left.min(self.come.len()));
        self.within = match left - data.len() {
            0 => Within::Content,
            left => Within::Piece(left),
        };
        Some(Part::Data(data))
    }

    fn head(&mut self) -> Result<Option<Part>, BrokenPack> {
        let Some(start) = self.peek(1 + LENGTH) else { return self.check_first(b"rR") };
        let (kind, length) = (first(start), be_u32(start.get(1..)));
        if !matches!(kind, b'r' | b'R') {
            return Err(BrokenPack::Malformed);
        }
        if length > HEAD_BYTES {
            return Err(BrokenPack::HeadTooLong);
        }
        let Some(mut whole) = self.take(1 + LENGTH + length) else { return Ok(None) };
        whole.advance(1 + LENGTH);
        let has_content = kind == b'R';
        if has_content {
            self.within = Within::Content;
        }
        Ok(Some(Part::Head { json: whole, has_content }))
    }

    fn content(&mut self) -> Result<Option<Part>, BrokenPack> {
        let Some(kind) = self.peek(1).map(first) else { return Ok(None) };
        let length = match kind {
            b'd' => LENGTH,
            b'h' => HOLE,
            b'e' => DIGEST,
            b'x' => 0,
            _ => return Err(BrokenPack::Malformed),
        };
        let Some(mut fields) = self.take(1 + length) else { return Ok(None) };
        fields.advance(1);
        match kind {
            b'd' => {
                self.within = Within::Piece(be_u32(Some(&fields)));
                if self.within == Within::Piece(0) {
                    return Err(BrokenPack::Malformed);
                }
                self.part()
            }
            b'h' => Ok(Some(Part::Hole(fields.get_u64()))),
            b'e' => {
                self.within = Within::Nothing;
                let digest: [u8; DIGEST] = (&*fields).try_into().map_err(|_length| BrokenPack::Malformed)?;
                Ok(Some(Part::End(Some(Digest(digest)))))
            }
            _ => {
                self.within = Within::Nothing;
                Ok(Some(Part::End(None)))
            }
        }
    }

    /// Refuses early what can become nothing.
    fn check_first(&self, known: &[u8]) -> Result<Option<Part>, BrokenPack> {
        let byte = self.held.first().or_else(|| self.come.first());
        if byte.is_none_or(|byte| known.contains(byte)) { Ok(None) } else { Err(BrokenPack::Malformed) }
    }

    /// The next bytes, in one piece, which stay.
    fn peek(&mut self, length: usize) -> Option<&[u8]> {
        if self.held.is_empty() && self.come.len() >= length {
            return self.come.get(..length);
        }
        let missing = length.saturating_sub(self.held.len());
        let more = self.come.split_to(missing.min(self.come.len()));
        self.held.put(more);
        self.held.get(..length)
    }

    fn take(&mut self, length: usize) -> Option<Bytes> {
        if self.held.is_empty() && self.come.len() >= length {
            return Some(self.come.split_to(length));
        }
        self.peek(length)?;
        Some(self.held.split_to(length).freeze())
    }
}

fn first(bytes: &[u8]) -> u8 {
    bytes.first().copied().unwrap_or(0)
}

fn be_u32(bytes: Option<&[u8]>) -> usize {
    let number = bytes.and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_be_bytes(*bytes));
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Writes a record's head; its content, if it has any, is to follow.
///
/// # Errors
/// If it has no JSON form.
pub fn put_head(to: &mut BytesMut, head: &impl Serialize, has_content: bool) -> serde_json::Result<()> {
    to.put_u8(if has_content { b'R' } else { b'r' });
    let at = to.len();
    to.put_u32(0);
    serde_json::to_writer((&mut *to).writer(), head)?;
    let length = u32::try_from(to.len() - at - LENGTH).unwrap_or(u32::MAX);
    if let Some(place) = to.get_mut(at..at + LENGTH) {
        place.copy_from_slice(&length.to_be_bytes());
    }
    Ok(())
}

/// Writes what comes before `length` bytes of content; 0 writes nothing.
pub fn put_data(to: &mut BytesMut, length: u32) {
    if length > 0 {
        to.put_u8(b'd');
        to.put_u32(length);
    }
}

/// Writes a hole.
pub fn put_hole(to: &mut BytesMut, length: u64) {
    to.put_u8(b'h');
    to.put_u64(length);
}

/// Ends content; without a digest it was broken off.
pub fn put_end(to: &mut BytesMut, digest: Option<&Digest>) {
    match digest {
        Some(Digest(digest)) => {
            to.put_u8(b'e');
            to.put_slice(digest);
        }
        None => to.put_u8(b'x'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Record {
        head: String,
        content: Option<(Vec<Piece>, Option<[u8; 32]>)>,
    }

    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Piece {
        Data(Vec<u8>),
        Hole(u64),
    }

    fn any_record() -> impl Strategy<Value = Record> {
        let piece = prop_oneof![
            prop::collection::vec(any::<u8>(), 1..50).prop_map(Piece::Data),
            any::<u64>().prop_map(Piece::Hole),
        ];
        let content = (prop::collection::vec(piece, 0..5), any::<Option<[u8; 32]>>());
        ("\\PC{0,20}", prop::option::of(content)).prop_map(|(head, content)| Record { head, content })
    }

    fn packed(records: &[Record]) -> Vec<u8> {
        let mut to = BytesMut::new();
        for record in records {
            put_head(&mut to, &record.head, record.content.is_some()).expect("JSON");
            let Some((pieces, digest)) = &record.content else { continue };
            for piece in pieces {
                match piece {
                    Piece::Data(data) => {
                        put_data(&mut to, u32::try_from(data.len()).expect("short"));
                        to.put_slice(data);
                    }
                    Piece::Hole(length) => put_hole(&mut to, *length),
                }
            }
            put_end(&mut to, digest.map(Digest).as_ref());
        }
        to.to_vec()
    }

    fn unpacked(bytes: &[u8], step: usize) -> Result<Vec<Record>, BrokenPack> {
        let (mut unpacker, mut records) = (Unpacker::default(), Vec::<Record>::new());
        for part in bytes.chunks(step.max(1)) {
            unpacker.feed(Bytes::copy_from_slice(part));
            while let Some(part) = unpacker.part()? {
                let pieces = records.last_mut().and_then(|it| it.content.as_mut());
                match (part, pieces) {
                    (Part::Head { json, has_content }, _) => {
                        let head = serde_json::from_slice(&json).map_err(|_no_json| BrokenPack::Malformed)?;
                        records.push(Record { head, content: has_content.then(|| (Vec::new(), None)) });
                    }
                    (Part::Data(data), Some((pieces, _))) => match pieces.last_mut() {
                        // What was one piece arrives in several.
                        Some(Piece::Data(before)) if step < 50 => before.extend(data),
                        _ => pieces.push(Piece::Data(data.to_vec())),
                    },
                    (Part::Hole(length), Some((pieces, _))) => pieces.push(Piece::Hole(length)),
                    (Part::End(digest), Some((_, end))) => *end = digest.map(|it| it.0),
                    (_, None) => return Err(BrokenPack::Malformed),
                }
            }
        }
        unpacker.end().map(|()| records)
    }

    /// A record's head, its data with its digest before it, and its holes.
    type Flat = (String, Option<(Vec<u8>, Vec<u64>)>);

    /// Pieces of data that lie side by side are one to a reader.
    fn joined(records: Vec<Record>) -> Vec<Flat> {
        let flat = |record: Record| {
            let content = record.content.map(|(pieces, digest)| {
                let (mut data, mut holes) = (digest.unwrap_or_default().to_vec(), Vec::new());
                for piece in pieces {
                    match piece {
                        Piece::Data(more) => data.extend(more),
                        Piece::Hole(length) => holes.push(length),
                    }
                }
                (data, holes)
            });
            (record.head, content)
        };
        records.into_iter().map(flat).collect()
    }

    proptest! {
        #[test]
        fn a_pack_reads_back_however_it_arrives(
            records in prop::collection::vec(any_record(), 0..6),
            step in 1_usize..200,
        ) {
            let bytes = packed(&records);
            let read = unpacked(&bytes, step).expect("is whole");
            prop_assert_eq!(joined(read), joined(records));
        }

        #[test]
        fn a_pack_that_is_cut_is_noticed(
            records in prop::collection::vec(any_record(), 1..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let bytes = packed(&records);
            let at = cut.index(bytes.len());
            let read = unpacked(&bytes[..at], 7);
            let ends: Vec<usize> = (0..=records.len()).map(|count| packed(&records[..count]).len()).collect();
            prop_assert_eq!(read.is_ok(), ends.contains(&at));
        }

        #[test]
        fn any_bytes_are_read_or_refused_without_a_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            step in 1_usize..20,
        ) {
            drop(unpacked(&bytes, step));
        }
    }

    #[test]
    fn heads_beyond_all_need_and_empty_pieces_are_refused() {
        let mut long = vec![b'r'];
        long.extend(u32::try_from(HEAD_BYTES + 1).expect("fits").to_be_bytes());
        assert_eq!(unpacked(&long, 100), Err(BrokenPack::HeadTooLong));
        assert_eq!(unpacked(b"q", 1), Err(BrokenPack::Malformed));
        assert_eq!(unpacked(b"R\0\0\0\x02\"\"d\0\0\0\0", 3), Err(BrokenPack::Malformed));
    }
}
