// SPDX-License-Identifier: Apache-2.0
//! Streams of `sandboxd`: messages one by one, each bounded, none read before its reader wants it.

use super::AgentError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use postern_common::output::{self, MESSAGE_BYTES};
use serde::Deserialize;
use serde::de::DeserializeOwned;

const ENVELOPE_HEAD: usize = 5;
const END_OF_STREAM: u8 = 0b10;

/// The messages of one stream. Reading slowly slows whoever sends.
#[derive(Debug)]
pub struct Envelopes {
    body: Incoming,
    messages: Messages,
    is_over: bool,
}

/// Cuts messages out of what is read.
#[derive(Debug, Default)]
struct Messages {
    /// What was read and not looked at yet.
    unread: Bytes,
    /// A message, with its head, of which not all was read yet.
    part: Vec<u8>,
}

impl Messages {
    /// The next whole message with its flags; `None` if more has to be read first, for which nothing is left in
    /// `unread`. One that was read in one piece is not copied.
    fn next(&mut self) -> Result<Option<(u8, Bytes)>, AgentError> {
        if self.part.is_empty()
            && let Some((flags, length)) = head(&self.unread)?
            && self.unread.len() >= ENVELOPE_HEAD + length
        {
            self.unread.advance(ENVELOPE_HEAD);
            return Ok(Some((flags, self.unread.split_to(length))));
        }
        self.collect(ENVELOPE_HEAD);
        let Some((flags, length)) = head(&self.part)? else { return Ok(None) };
        self.collect(ENVELOPE_HEAD + length);
        if self.part.len() < ENVELOPE_HEAD + length {
            return Ok(None);
        }
        let mut message = Bytes::from(std::mem::take(&mut self.part));
        message.advance(ENVELOPE_HEAD);
        Ok(Some((flags, message)))
    }

    /// Moves what was read to the message, until that has this length.
    fn collect(&mut self, length: usize) {
        let missing = length.saturating_sub(self.part.len());
        self.part.reserve_exact(missing);
        let more = self.unread.split_to(missing.min(self.unread.len()));
        self.part.extend_from_slice(&more);
    }
}

/// Flags and length of the message that begins here; `None` if its head is not whole.
fn head(bytes: &[u8]) -> Result<Option<(u8, usize)>, AgentError> {
    let Some([flags, length @ ..]) = bytes.first_chunk::<ENVELOPE_HEAD>().copied() else { return Ok(None) };
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > MESSAGE_BYTES { Err(AgentError::Malformed) } else { Ok(Some((flags, length))) }
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

/// What comes next, before it is understood.
enum Read {
    /// A message, with the flags of its envelope.
    Message(u8, Bytes),
    End(Option<Failure>),
}

impl Envelopes {
    pub(super) fn new(body: Incoming) -> Self {
        Self { body, messages: Messages::default(), is_over: false }
    }

    /// The next message. Cancelling loses nothing.
    ///
    /// # Errors
    /// [`AgentError`], after which there is no more.
    pub(crate) async fn next<Message: DeserializeOwned>(&mut self) -> Result<Next<Message>, AgentError> {
        match self.read_one().await? {
            Read::Message(_, message) => parse(&message).map(Next::Message),
            Read::End(failure) => Ok(Next::End(failure)),
        }
    }

    async fn read_one(&mut self) -> Result<Read, AgentError> {
        while !self.is_over {
            match self.messages.next().inspect_err(|_error| self.is_over = true)? {
                Some((flags, message)) if flags & END_OF_STREAM != 0 => {
                    self.is_over = true;
                    return failure(&message).map(Read::End);
                }
                Some((flags, message)) => return Ok(Read::Message(flags, message)),
                None => self.read().await?,
            }
        }
        Ok(Read::End(None))
    }

    async fn read(&mut self) -> Result<(), AgentError> {
        let frame = self.body.frame().await;
        match frame {
            Some(Ok(frame)) => {
                self.messages.unread = frame.into_data().unwrap_or_default();
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

fn parse<Message: DeserializeOwned>(json: &[u8]) -> Result<Message, AgentError> {
    serde_json::from_slice(json).map_err(|_malformed| AgentError::Malformed)
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
            return match self.0.read_one().await? {
                Read::Message(flags, message) => match event(flags, message)? {
                    Some(event) => Ok(Some(event)),
                    None => continue,
                },
                Read::End(failure) => {
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

fn event(flags: u8, message: Bytes) -> Result<Option<Event>, AgentError> {
    match flags {
        output::STDOUT => return Ok(Some(Event::Stdout(message))),
        output::STDERR => return Ok(Some(Event::Stderr(message))),
        _ => {}
    }
    let decode = |text: &str| BASE64.decode(text).map(Bytes::from).map_err(|_invalid| AgentError::Malformed);
    Ok(Some(match parse::<Message>(&message)?.event {
        WireEvent::Start { pid } => Event::Started { pid },
        WireEvent::Data(Chunk::Stdout(text) | Chunk::Pty(text)) => Event::Stdout(decode(&text)?),
        WireEvent::Data(Chunk::Stderr(text)) => Event::Stderr(decode(&text)?),
        WireEvent::End { exit_code, status } => Event::Ended { exit_code, status },
        WireEvent::Keepalive {} => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(flags: u8, content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len()).expect("fits").to_be_bytes();
        [&[flags][..], &length, content].concat()
    }

    #[test]
    fn messages_are_cut_out_of_what_comes_however_it_comes() {
        let wanted = [(0, &b"{}"[..]), (output::STDOUT, b""), (output::STDERR, b"to the byte")];
        let all: Vec<u8> = wanted.iter().flat_map(|(flags, content)| envelope(*flags, content)).collect();
        for size in [1, 4, 5, 6, 13, all.len()] {
            let (mut messages, mut found) = (Messages::default(), Vec::new());
            for part in all.chunks(size) {
                messages.unread = Bytes::copy_from_slice(part);
                while let Some((flags, content)) = messages.next().expect("is well-formed") {
                    found.push((flags, content));
                }
                assert!(messages.unread.is_empty(), "nothing is passed over, in parts of {size}");
            }
            let found: Vec<_> = found.iter().map(|(flags, content)| (*flags, &content[..])).collect();
            assert_eq!(found, wanted, "in parts of {size}");
        }
    }

    #[test]
    fn a_message_that_came_in_one_piece_is_not_copied() {
        let all = Bytes::from(envelope(output::STDOUT, b"output"));
        let place = all[ENVELOPE_HEAD..].as_ptr();
        let mut messages = Messages { unread: all, part: Vec::new() };
        let (_, content) = messages.next().expect("is well-formed").expect("is whole");
        assert_eq!(content.as_ptr(), place);
    }

    #[test]
    fn a_message_that_is_too_long_is_not_waited_for() {
        let mut messages = Messages { unread: Bytes::from_static(&[0, 0, 4, 0, 1]), part: Vec::new() };
        assert!(matches!(messages.next(), Err(AgentError::Malformed)));
    }

    #[test]
    fn output_is_understood_as_bytes_and_as_json() {
        let of =
            |flags, content: &'static [u8]| event(flags, Bytes::from_static(content)).expect("is understood");
        let (out, err) =
            (Event::Stdout(Bytes::from_static(b"hi\n")), Event::Stderr(Bytes::from_static(b"hi\n")));
        assert_eq!(of(output::STDOUT, b"hi\n"), Some(out.clone()));
        assert_eq!(of(output::STDERR, b"hi\n"), Some(err.clone()));
        assert_eq!(of(0, br#"{"event":{"data":{"stdout":"aGkK"}}}"#), Some(out.clone()));
        assert_eq!(of(0, br#"{"event":{"data":{"pty":"aGkK"}}}"#), Some(out));
        assert_eq!(of(0, br#"{"event":{"data":{"stderr":"aGkK"}}}"#), Some(err));
        assert_eq!(of(0, br#"{"event":{"keepalive":{}}}"#), None);
        assert!(event(0, Bytes::from_static(b"hi\n")).is_err(), "bytes that nobody said are bytes");
    }
}
