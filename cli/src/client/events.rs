// SPDX-License-Identifier: Apache-2.0
//! Server-sent events (WHATWG HTML, 9.2), as far as our API writes them: `event`, `data`, `id`.

use crate::failure::Failure;
use anyhow::anyhow;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use std::collections::VecDeque;

/// The longest event: a chunk of output is at most 128 KiB, its base64 and JSON below twice that.
const MAX_EVENT_BYTES: usize = 4 * 1024 * 1024;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Event {
    /// Its kind; `message` if it said none.
    pub kind: String,
    /// Its text, lines joined by line breaks.
    pub text: String,
    /// Its number in the stream, if it has one.
    pub id: Option<u64>,
}

/// Reads events from a response.
#[derive(Debug)]
pub(crate) struct EventReader {
    body: Incoming,
    parser: Parser,
}

impl EventReader {
    pub(super) fn new(body: Incoming) -> Self {
        Self { body, parser: Parser::default() }
    }

    /// The next event; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, Failure> {
        loop {
            if let Some(event) = self.parser.ready.pop_front() {
                return Ok(Some(event));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|error| anyhow!("the stream broke off: {error}"))?;
            if let Ok(bytes) = frame.into_data() {
                self.parser
                    .push(&bytes)
                    .map_err(|TooLong| anyhow!("an event is over {MAX_EVENT_BYTES} bytes"))?;
            }
        }
    }
}

/// An event is longer than any of ours.
#[derive(Debug, PartialEq, Eq)]
struct TooLong;

/// Turns bytes into events, wherever the bytes were cut.
#[derive(Debug, Default)]
struct Parser {
    line: Vec<u8>,
    event: Event,
    has_text: bool,
    ready: VecDeque<Event>,
}

impl Parser {
    fn push(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        for byte in bytes {
            if *byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                self.line(String::from_utf8_lossy(&line).trim_end_matches('\r'));
            } else {
                self.line.push(*byte);
            }
            if self.line.len() + self.event.text.len() > MAX_EVENT_BYTES {
                return Err(TooLong);
            }
        }
        Ok(())
    }

    fn line(&mut self, line: &str) {
        if line.is_empty() {
            let mut event = std::mem::take(&mut self.event);
            if std::mem::take(&mut self.has_text) {
                if event.kind.is_empty() {
                    event.kind.push_str("message");
                }
                self.ready.push_back(event);
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event.kind),
            "data" => {
                if self.has_text {
                    self.event.text.push('\n');
                }
                self.event.text.push_str(value);
                self.has_text = true;
            }
            "id" => self.event.id = value.parse().ok(),
            // Comments keep connections alive.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(chunks: &[&[u8]]) -> Vec<(String, String)> {
        let mut parser = Parser::default();
        for chunk in chunks {
            parser.push(chunk).expect("is short");
        }
        parser.ready.into_iter().map(|event| (event.kind, event.text)).collect()
    }

    #[test]
    fn events_are_read_with_their_kind_and_all_their_lines() {
        let text =
            b": hello\n\nevent: stdout\ndata: a\ndata:b\n\ndata: c\r\n\r\nevent: empty\n\ndata: unfinished\n";
        let wanted = [("stdout".to_owned(), "a\nb".to_owned()), ("message".to_owned(), "c".to_owned())];
        assert_eq!(parsed(&[text]), wanted);
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = Parser::default();
        assert_eq!(parser.push(&vec![b'a'; MAX_EVENT_BYTES + 1]), Err(TooLong));
    }

    proptest! {
        #[test]
        fn where_the_bytes_are_cut_makes_no_difference(text in "((event|data|id): ?[a-zäö ]{0,6}\n{1,2}){0,8}", at in 0usize..80) {
            let bytes = text.as_bytes();
            let (left, right) = bytes.split_at(at.min(bytes.len()));
            prop_assert_eq!(parsed(&[bytes]), parsed(&[left, right]));
        }
    }
}
