// SPDX-License-Identifier: Apache-2.0
//! How a control channel is begun anew inside a sandbox that was woken from its memory.
//!
//! Process 1 wakes in the middle of an HTTP/2 conversation whose other end is long gone; a part of a
//! frame may even have come. The shim ends that conversation so that both sides know where the new one
//! begins:
//!
//! ```text
//! shim                                        sandboxd
//!  FLOOD: no frame may be that long     ──▶   its conversation breaks
//!  passes over what is left of it       ◀──   MARK
//!  GO                                   ──▶   passes over the rest of the flood
//!  begins a new conversation            ◀──   MARK
//! ```

/// A byte of the flood: wherever a frame begins in it, its length is over every bound.
pub const FLOOD: u8 = 0xff;
/// Bytes of the flood: more than the longest frame that may have come in part (16 KiB and its head).
pub const FLOOD_BYTES: usize = 20 << 10;
/// The last byte before the new conversation.
pub const GO: u8 = 0;
/// What process 1 says before and after [`GO`]. Its end is no beginning of it, so a part of one that was on
/// its way does not make the next be found too early. All of one in a process's output does: then that
/// sandbox does not wake with its memory, and nobody else notices.
pub const MARK: &[u8; 32] = b"\x01\xfepostern:asleep:and:listening\xfe\x02";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flood_is_longer_than_any_frame_and_breaks_what_is_read_as_one() {
        // RFC 9113 §4.1 and §4.2: 9 bytes of head, at most 16,384 of content unless more was agreed on.
        const { assert!(FLOOD_BYTES > 9 + 16_384 + 9) };
        let length = u32::from_be_bytes([0, FLOOD, FLOOD, FLOOD]);
        assert!(length > 16_384, "wherever a head begins in it, it says {length}");
        assert!(!MARK.contains(&FLOOD), "a mark is not taken for a flood");
        assert!((1..MARK.len()).all(|at| !MARK.starts_with(&MARK[at..])), "no mark begins within another");
        assert!(!MARK.contains(&0), "what is read of it begins as zeros");
    }
}
