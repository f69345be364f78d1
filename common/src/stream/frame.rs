// SPDX-License-Identifier: Apache-2.0
//! Frames: a kind, a length, and so many bytes. Both ends bound what they read before they do.
//!
//! ```text
//! length of kind and body (u32, big-endian)   kind (u8)   body…
//! ```

use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

/// The longest frame before a gateway is known, and the longest answer of one.
pub const SMALL_BYTES: u32 = 64 * 1024;
/// The longest frame of a gateway that is known: a batch of decisions.
pub const GATEWAY_BYTES: u32 = 8 * 1024 * 1024;
/// The longest frame of the orchestrator: a snapshot with every tenant's compiled filters.
pub const ORCHESTRATOR_BYTES: u32 = 1024 * 1024 * 1024;
/// Read at a time, so that memory follows what came and not what was announced.
const STEP_BYTES: usize = 256 * 1024;
/// How long a part of a frame may take to leave.
const STEP_TIME: Duration = Duration::from_secs(10);

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        /// What a frame holds.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Kind { $($(#[$doc])* $name = $number,)* }

        impl Kind {
            const fn of(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

kinds! {
    /// [`super::Hello`].
    Hello = 1;
    /// [`super::AppliedFrame`].
    Applied = 2;
    /// [`super::Ping`].
    Ping = 3;
    /// [`super::Decisions`].
    Decisions = 4;
    /// [`super::Lines`].
    Lines = 5;
    /// A signed [`super::chain::Welcome`].
    Welcome = 16;
    /// [`super::Refusal`].
    Refusal = 17;
    /// A signed message of the chain.
    Message = 18;
    /// A signed [`super::chain::Heartbeat`].
    Heartbeat = 19;
    /// [`super::Kept`].
    Kept = 20;
}

/// A frame could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection ended, or broke in the middle of a frame.
    #[error("the connection was cut")]
    Cut(#[source] io::Error),
    /// It is longer than it may be.
    #[error("a frame of {0} bytes is longer than it may be")]
    TooLong(u32),
    /// It holds something that this release does not know.
    #[error("a frame of unknown kind {0}")]
    Unknown(u8),
    /// It does not say what its kind promises.
    #[error("a frame that cannot be read: {0}")]
    Malformed(String),
}

/// Reads one frame of at most `bound` bytes.
///
/// Not cancel-safe: what was read of a frame is lost with the future.
///
/// # Errors
/// [`FrameError`].
pub async fn read(from: &mut (impl AsyncRead + Unpin), bound: u32) -> Result<(Kind, Vec<u8>), FrameError> {
    let length = from.read_u32().await.map_err(FrameError::Cut)?;
    if length == 0 || length > bound {
        return Err(FrameError::TooLong(length));
    }
    let number = from.read_u8().await.map_err(FrameError::Cut)?;
    let kind = Kind::of(number).ok_or(FrameError::Unknown(number))?;
    let mut left = usize::try_from(length - 1).map_err(|_too_long| FrameError::TooLong(length))?;
    let mut body = Vec::with_capacity(left.min(STEP_BYTES));
    while left > 0 {
        let step = left.min(STEP_BYTES);
        let before = body.len();
        let mut limited = (&mut *from).take(step as u64);
        limited.read_to_end(&mut body).await.map_err(FrameError::Cut)?;
        if body.len() - before < step {
            return Err(FrameError::Cut(io::ErrorKind::UnexpectedEof.into()));
        }
        left -= step;
    }
    Ok((kind, body))
}

/// Writes one frame and flushes it. Each part of it has its time to be taken by the other side, so
/// that a long one may take long, and one that nobody reads does not.
///
/// # Errors
/// [`FrameError::TooLong`] for more than 4 GiB; else that the connection is cut.
pub async fn write(to: &mut (impl AsyncWrite + Unpin), kind: Kind, body: &[u8]) -> Result<(), FrameError> {
    let length = u32::try_from(body.len()).ok().and_then(|length| length.checked_add(1));
    let length = length.ok_or(FrameError::TooLong(u32::MAX))?;
    let mut head = [0; 5];
    let (size, number) = head.split_at_mut(4);
    size.copy_from_slice(&length.to_be_bytes());
    number.copy_from_slice(&[kind as u8]);
    let written = async {
        step(to.write_all(&head)).await?;
        for part in body.chunks(STEP_BYTES) {
            step(to.write_all(part)).await?;
        }
        step(to.flush()).await
    };
    written.await.map_err(FrameError::Cut)
}

/// One step of a write, in its time.
async fn step(write: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    timeout(STEP_TIME, write).await.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
}

/// A frame's body as JSON.
///
/// # Errors
/// [`FrameError::Malformed`].
pub fn parse<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(body).map_err(|error| {
        // It may name what a stranger wrote.
        FrameError::Malformed(error.to_string().chars().take(200).flat_map(char::escape_debug).collect())
    })
}

/// JSON of a frame's body.
///
/// # Errors
/// [`FrameError::Malformed`] for what has no JSON form, which no type of ours is.
pub fn body(value: &impl serde::Serialize) -> Result<Vec<u8>, FrameError> {
    serde_json::to_vec(value).map_err(|error| FrameError::Malformed(error.to_string()))
}
