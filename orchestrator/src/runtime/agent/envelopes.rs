// SPDX-License-Identifier: Apache-2.0
//! Streams of `sandboxd`: messages one by one, each bounded, none read before its reader wants it.

use super::AgentError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The longest message of a stream; `sandboxd` sends 64 KiB of output at a time, as base64.
const MESSAGE_BYTES: usize = 256 << 10;
const ENVELOPE_HEAD: usize = 5;
const END_OF_STREAM: u8 = 0b10;

/// The messages of one stream. Reading slowly slows whoever sends.
#[derive(Debug)]
pub struct Envelopes {
    body: Incoming,
    unread: BytesMut,
    is_over: bool,
}

/// How a stream ended that did not end well.
#[derive(Debug, Deserialize)]
pub(crate) struct Failure {
    pub(crate) code: String,
    #[serde(default)]
    pub(crate) message: String,
}

/// What comes next in a stream.
pub(crate) enum Next<Message> {
    Message(Message),
    /// It ended, well or not.
    End(Option<Failure>),
}

impl Envelopes {
    pub(super) fn new(body: Incoming) -> Self {
        Self { body, unread: BytesMut::new(), is_over: false }
    }

    /// The next message. Cancelling loses nothing.
    ///
    /// # Errors
    /// [`AgentError`], after which there is no more.
    pub(crate) async fn next<Message: DeserializeOwned>(&mut self) -> Result<Next<Message>, AgentError> {
        while !self.is_over {
            match self.message()? {
                Some((flags, message)) if flags & END_OF_STREAM != 0 => {
                    self.is_over = true;
                    return failure(&message).map(Next::End);
                }
                Some((_, message)) => {
                    let message = serde_json::from_slice(&message);
                    return message.map(Next::Message).map_err(|_malformed| AgentError::Malformed);
                }
                None => self.read().await?,
            }
        }
        Ok(Next::End(None))
    }

    /// Takes a whole message off what has been read.
    fn message(&mut self) -> Result<Option<(u8, Bytes)>, AgentError> {
        let Some([flags, length @ ..]) = self.unread.first_chunk::<ENVELOPE_HEAD>().copied() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > MESSAGE_BYTES {
            self.is_over = true;
            return Err(AgentError::Malformed);
        }
        if self.unread.len() < ENVELOPE_HEAD + length {
            return Ok(None);
        }
        self.unread.advance(ENVELOPE_HEAD);
        Ok(Some((flags, self.unread.split_to(length).freeze())))
    }

    async fn read(&mut self) -> Result<(), AgentError> {
        let frame = self.body.frame().await;
        match frame {
            Some(Ok(frame)) => {
                self.unread.extend_from_slice(frame.data_ref().map_or(&[][..], |bytes| bytes));
                Ok(())
            }
            Some(Err(error)) => {
                self.is_over = true;
                Err(AgentError::Broken(error))
            }
            // A stream that stops without its last message was cut.
            None => {
                self.is_over = true;
                Err(AgentError::Malformed)
            }
        }
    }
}

fn failure(json: &[u8]) -> Result<Option<Failure>, AgentError> {
    #[derive(Deserialize)]
    struct End {
        error: Option<Failure>,
    }
    let end: End = serde_json::from_slice(json).map_err(|_malformed| AgentError::Malformed)?;
    Ok(end.error)
}

/// What a process did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It runs.
    Started {
        /// Its id inside.
        pid: i32,
    },
    /// It wrote to its standard output, or to its terminal.
    Stdout(Bytes),
    /// It wrote to its standard error.
    Stderr(Bytes),
    /// It ended: `exit_code` is -1 if by a signal.
    Ended {
        /// Its exit code.
        exit_code: i32,
        /// In words.
        status: String,
    },
    /// The stream ended with an error, such as `deadline_exceeded`.
    Failed {
        /// The Connect error code.
        code: String,
        /// In words.
        message: String,
    },
}

/// The events of one process. Reading slowly slows the process.
#[derive(Debug)]
pub struct Events(Envelopes);

impl Events {
    pub(super) const fn new(envelopes: Envelopes) -> Self {
        Self(envelopes)
    }

    /// The next event; `None` after the last. Cancelling loses nothing.
    ///
    /// # Errors
    /// [`AgentError`], after which there is no more.
    pub async fn next(&mut self) -> Result<Option<Event>, AgentError> {
        loop {
            return match self.0.next::<Message>().await? {
                Next::Message(message) => match event(message)? {
                    Some(event) => Ok(Some(event)),
                    None => continue,
                },
                Next::End(failure) => {
                    Ok(failure.map(|Failure { code, message }| Event::Failed { code, message }))
                }
            };
        }
    }
}

#[derive(Deserialize)]
struct Message {
    event: WireEvent,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum WireEvent {
    Start {
        pid: i32,
    },
    Data(Chunk),
    End {
        #[serde(rename = "exitCode", default)]
        exit_code: i32,
        #[serde(default)]
        status: String,
    },
    Keepalive {},
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum Chunk {
    Stdout(String),
    Stderr(String),
    Pty(String),
}

fn event(message: Message) -> Result<Option<Event>, AgentError> {
    let decode = |text: &str| BASE64.decode(text).map(Bytes::from).map_err(|_invalid| AgentError::Malformed);
    Ok(Some(match message.event {
        WireEvent::Start { pid } => Event::Started { pid },
        WireEvent::Data(Chunk::Stdout(text) | Chunk::Pty(text)) => Event::Stdout(decode(&text)?),
        WireEvent::Data(Chunk::Stderr(text)) => Event::Stderr(decode(&text)?),
        WireEvent::End { exit_code, status } => Event::Ended { exit_code, status },
        WireEvent::Keepalive {} => return Ok(None),
    }))
}
