// SPDX-License-Identifier: Apache-2.0
//! What output is read into, and sent from as it is.

use crate::connect::{self, ENVELOPE_HEAD};
use bytes::Bytes;
use postern_common::output::CHUNK_BYTES;
use std::sync::{Arc, Mutex, PoisonError};

/// What is no longer than this is copied to be sent: it is not to hold room for a whole chunk.
const COPIED_BYTES: usize = 16 << 10;
/// Buffers of one process that are kept for its next chunks: as many as its followers' queues hold.
const SPARES: usize = 3;

/// Buffers that were sent. The allocator would give each back to the kernel and get the next page by page,
/// cleared: under gVisor that takes longer than all else that is done with a chunk.
#[derive(Debug, Clone, Default)]
pub(super) struct Spares(Arc<Mutex<Vec<Vec<u8>>>>);

impl Spares {
    fn take(&self) -> Vec<u8> {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.unwrap_or_else(|| vec![0; ENVELOPE_HEAD + CHUNK_BYTES])
    }

    fn give_back(&self, buffer: Vec<u8>) {
        let mut spares = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spares.len() < SPARES {
            spares.push(buffer);
        }
    }
}

/// A chunk of output, behind room for the head of an envelope.
#[derive(Debug)]
pub(super) struct Chunk {
    /// INVARIANT: `ENVELOPE_HEAD + CHUNK_BYTES` long.
    buffer: Vec<u8>,
    length: usize,
    spares: Spares,
}

impl Chunk {
    /// An empty one.
    pub(super) fn new(spares: &Spares) -> Self {
        Self { buffer: spares.take(), length: 0, spares: spares.clone() }
    }

    /// What has been read.
    pub(super) fn bytes(&self) -> &[u8] {
        self.buffer.get(ENVELOPE_HEAD..ENVELOPE_HEAD + self.length).unwrap_or_default()
    }

    /// Where more can be read into; nothing if it is full.
    pub(super) fn room(&mut self) -> &mut [u8] {
        self.buffer.get_mut(ENVELOPE_HEAD + self.length..).unwrap_or_default()
    }

    /// Notes that so much was read into [`Chunk::room`].
    pub(super) fn add(&mut self, length: usize) {
        self.length = (self.length + length).min(CHUNK_BYTES);
    }

    /// Forgets what was read.
    pub(super) fn clear(&mut self) {
        self.length = 0;
    }

    /// What was read as the envelope of these flags. It is empty then.
    pub(super) fn envelope(&mut self, flags: u8) -> Bytes {
        let whole = ENVELOPE_HEAD + self.length;
        if let Some(head) = self.buffer.first_chunk_mut::<ENVELOPE_HEAD>() {
            *head = connect::head(flags, self.length);
        }
        self.length = 0;
        if whole <= COPIED_BYTES {
            return Bytes::copy_from_slice(self.buffer.get(..whole).unwrap_or_default());
        }
        let buffer = std::mem::replace(&mut self.buffer, self.spares.take());
        Bytes::from_owner(Sent { buffer, length: whole, spares: self.spares.clone() })
    }
}

/// A buffer that is on its way. When the last who has it lets go, it is a spare one.
struct Sent {
    buffer: Vec<u8>,
    length: usize,
    spares: Spares,
}

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        self.buffer.get(..self.length).unwrap_or_default()
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.spares.give_back(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_common::output::{STDERR, STDOUT};

    fn filled(spares: &Spares, byte: u8, length: usize) -> Chunk {
        let mut chunk = Chunk::new(spares);
        chunk.room()[..length].fill(byte);
        chunk.add(length);
        chunk
    }

    #[test]
    fn an_envelope_is_its_flags_the_length_and_what_was_read() {
        let mut chunk = filled(&Spares::default(), b'x', 3);
        assert_eq!(chunk.bytes(), b"xxx");
        assert_eq!(&chunk.envelope(STDERR)[..], b"\x20\0\0\0\x03xxx");
        assert!(chunk.bytes().is_empty(), "it was sent");
        assert_eq!(chunk.room().len(), CHUNK_BYTES);
    }

    #[test]
    fn what_is_on_its_way_is_not_written_over_and_its_buffer_is_used_again() {
        let spares = Spares::default();
        let mut chunk = filled(&spares, b'a', CHUNK_BYTES);
        assert!(chunk.room().is_empty(), "it is full");
        let first = chunk.envelope(STDOUT);
        chunk.room().fill(b'b');
        chunk.add(CHUNK_BYTES);
        let second = chunk.envelope(STDOUT);
        assert!(first[ENVELOPE_HEAD..].iter().all(|byte| *byte == b'a'));
        assert!(second[ENVELOPE_HEAD..].iter().all(|byte| *byte == b'b'));
        let place = first.as_ptr();
        drop(first);
        let again = spares.take();
        assert_eq!(again.as_ptr(), place);
    }

    #[test]
    fn what_is_short_holds_no_room_for_a_whole_chunk() {
        let spares = Spares::default();
        let mut chunk = filled(&spares, b'a', 1);
        let place = chunk.room().as_ptr();
        let sent: Vec<Bytes> = (0..1000).map(|_| chunk.envelope(STDOUT)).collect();
        assert_eq!(sent.len(), 1000);
        chunk.clear();
        chunk.add(1);
        assert_eq!(chunk.room().as_ptr(), place, "the same buffer is read into");
    }

    #[test]
    fn spare_buffers_are_bounded() {
        let spares = Spares::default();
        let sent: Vec<Bytes> = (0..10).map(|_| filled(&spares, b'a', CHUNK_BYTES).envelope(STDOUT)).collect();
        drop(sent);
        assert_eq!(spares.0.lock().expect("whole").len(), SPARES);
    }
}
