// SPDX-License-Identifier: Apache-2.0
//! What processes write, passed between our own programs as it is.
//!
//! `sandboxd` speaks Connect with JSON, in which output is base64 of what was written. Who asks for bytes
//! ([`HEADER`]) gets each chunk of output as an envelope whose flags say which output it is of, and whose
//! content is what was written: nothing of it is encoded, and nothing decoded. Everything else in the stream
//! stays as it was, and so does what counts as a message.

/// The header by which a caller of `Start` or `Connect` asks how output is to come.
pub const HEADER: &str = "postern-output";
/// Its value for output as it is.
pub const BYTES: &str = "bytes";
/// The flags of an envelope that is a chunk of standard output, or of a terminal. Connect uses the two lowest.
pub const STDOUT: u8 = 0b0001_0000;
/// The flags of one that is a chunk of standard error.
pub const STDERR: u8 = 0b0010_0000;

/// The most that a chunk holds. What each message costs on its way is spread over that much.
pub const CHUNK_BYTES: usize = 128 << 10;
/// The longest message of a stream: a chunk as base64 in JSON, and then some.
pub const MESSAGE_BYTES: usize = 256 << 10;
/// The longest frame of HTTP/2 that an orchestrator takes: a message is one, so it is read and written at once.
pub const FRAME_BYTES: u32 = 256 << 10;
/// What of one stream may wait for its reader there: some messages, so that the next are on their way while one
/// is taken.
pub const STREAM_WINDOW_BYTES: u32 = 512 << 10;
/// What of all streams of one connection may.
pub const CONNECTION_WINDOW_BYTES: u32 = 2 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_fits_a_message_however_it_is_passed() {
        // With the longest frame of JSON around it.
        const { assert!(CHUNK_BYTES.div_ceil(3) * 4 + 64 <= MESSAGE_BYTES) };
        const { assert!(CHUNK_BYTES + 5 <= FRAME_BYTES as usize) };
        assert_eq!((STDOUT | STDERR) & 0b11, 0, "these are Connect's own");
    }
}
