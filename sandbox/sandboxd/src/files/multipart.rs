// SPDX-License-Identifier: Apache-2.0
//! Bodies of `multipart/form-data` (RFC 7578), read part by part as they come: however long a part
//! is, only a piece of it is held.

use crate::connect::{Code, Failure};
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use memchr::memmem;
use percent_encoding::percent_decode_str;

/// A part's headers, together.
const HEAD_BYTES: usize = 8 << 10;
const HEADERS: usize = 16;
/// RFC 2046 §5.1.1.
const BOUNDARY_BYTES: usize = 70;

/// Where bytes come from.
pub(super) trait Source {
    /// The next piece; `None` at the end.
    async fn piece(&mut self) -> Result<Option<Bytes>, Failure>;
}

impl Source for Incoming {
    async fn piece(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let Some(frame) = self.frame().await else { return Ok(None) };
            let cut = |_error| Failure::new(Code::InvalidArgument, "the body broke off");
            if let Ok(bytes) = frame.map_err(cut)?.into_data() {
                return Ok(Some(bytes));
            }
        }
    }
}

/// A body of parts.
#[derive(Debug)]
pub(super) struct Multipart<From> {
    from: From,
    /// Line break, two dashes and the boundary: what stands between parts.
    delimiter: Vec<u8>,
    unread: BytesMut,
    is_at_end: bool,
    is_in_part: bool,
}

/// What a part says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) filename: Option<String>,
}

impl<From: Source> Multipart<From> {
    pub(super) fn new(content_type: &str, from: From) -> Result<Self, Failure> {
        let boundary =
            parameters(content_type).find_map(|(name, value)| (name == "boundary").then_some(value));
        let boundary = boundary.filter(|text| !text.is_empty() && text.len() <= BOUNDARY_BYTES);
        let boundary = boundary.ok_or_else(|| malformed("has no boundary"))?;
        let delimiter = format!("\r\n--{boundary}").into_bytes();
        // The first delimiter may be the very beginning.
        let unread = BytesMut::from(&b"\r\n"[..]);
        // What stands before it belongs to nobody, as the rest of a part does.
        Ok(Self { from, delimiter, unread, is_at_end: false, is_in_part: true })
    }

    /// Goes on to the next part; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Part>, Failure> {
        while self.piece().await?.is_some() {}
        if self.is_at_end {
            return Ok(None);
        }
        self.fill(2).await?;
        if self.unread.starts_with(b"--") {
            self.is_at_end = true;
            return Ok(None);
        }
        // Blanks may follow a boundary up to its line's end.
        let head = loop {
            if let Some(end) = memmem::find(&self.unread, b"\r\n\r\n") {
                break self.unread.split_to(end + 4);
            }
            if self.unread.len() > HEAD_BYTES {
                return Err(malformed("has a part with too many headers"));
            }
            self.more().await?;
        };
        self.is_in_part = true;
        let after_blanks =
            memmem::find(&head, b"\r\n").map_or(&head[..], |line| head.get(line + 2..).unwrap_or_default());
        part(after_blanks).map(Some)
    }

    async fn fill(&mut self, length: usize) -> Result<(), Failure> {
        while self.unread.len() < length {
            self.more().await?;
        }
        Ok(())
    }

    async fn more(&mut self) -> Result<(), Failure> {
        match self.from.piece().await? {
            Some(bytes) => self.unread.extend_from_slice(&bytes),
            None => return Err(malformed("ends before its last boundary")),
        }
        Ok(())
    }
}

/// The bytes of the part that was gone to.
impl<From: Source> Source for Multipart<From> {
    async fn piece(&mut self) -> Result<Option<Bytes>, Failure> {
        while self.is_in_part {
            if let Some(end) = memmem::find(&self.unread, &self.delimiter) {
                let last = self.unread.split_to(end).freeze();
                self.unread.advance(self.delimiter.len());
                self.is_in_part = false;
                return Ok(Some(last).filter(|bytes| !bytes.is_empty()));
            }
            // The delimiter may have begun at the end of what is here.
            let sure = (self.unread.len() + 1).saturating_sub(self.delimiter.len());
            if sure > 0 {
                return Ok(Some(self.unread.split_to(sure).freeze()));
            }
            self.more().await?;
        }
        Ok(None)
    }
}

fn malformed(how: &str) -> Failure {
    Failure::new(Code::InvalidArgument, format!("the multipart body {how}"))
}

fn part(head: &[u8]) -> Result<Part, Failure> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let unreadable = || malformed("has a part whose headers cannot be read");
    let Ok(httparse::Status::Complete((_, headers))) = httparse::parse_headers(head, &mut headers) else {
        return Err(unreadable());
    };
    let disposition = headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-disposition"));
    let disposition =
        disposition.and_then(|header| std::str::from_utf8(header.value).ok()).ok_or_else(unreadable)?;
    let mut part = Part::default();
    let mut is_extended = false;
    for (name, value) in parameters(disposition) {
        match name.as_str() {
            "name" => part.name = escaped_in_forms(&value),
            // RFC 5987; it stands for the other where both are there.
            "filename*" => {
                let value = value.rsplit('\'').next().unwrap_or_default();
                part.filename = Some(percent_decode_str(value).decode_utf8_lossy().into_owned());
                is_extended = true;
            }
            "filename" if !is_extended => part.filename = Some(escaped_in_forms(&value)),
            _ => {}
        }
    }
    Ok(part)
}

/// What browsers and their imitators write for the three characters that would end the name.
fn escaped_in_forms(value: &str) -> String {
    value.replace("%22", "\"").replace("%0D", "\r").replace("%0A", "\n")
}

/// The parameters of a header's value, names in lower case.
fn parameters(value: &str) -> impl Iterator<Item = (String, String)> + '_ {
    let mut rest = value.split_once(';').map_or("", |(_, rest)| rest);
    std::iter::from_fn(move || {
        let (name, after) = rest.trim_start_matches([' ', '\t', ';']).split_once('=')?;
        let name = name.trim().to_ascii_lowercase();
        let Some(quoted) = after.strip_prefix('"') else {
            let (token, after) = after.split_once(';').unwrap_or((after, ""));
            rest = after;
            return Some((name, token.trim().to_owned()));
        };
        let mut text = String::new();
        let mut characters = quoted.chars();
        while let Some(character) = characters.next() {
            match character {
                '"' => break,
                '\\' => text.extend(characters.next()),
                other => text.push(other),
            }
        }
        rest = characters.as_str();
        Some((name, text))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    impl Source for VecDeque<Bytes> {
        async fn piece(&mut self) -> Result<Option<Bytes>, Failure> {
            Ok(self.pop_front())
        }
    }

    fn read(body: &[u8], piece: usize) -> Result<Vec<(Part, Vec<u8>)>, Failure> {
        let pieces: VecDeque<Bytes> = body.chunks(piece.max(1)).map(Bytes::copy_from_slice).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let mut multipart = Multipart::new("multipart/form-data; boundary=XX", pieces)?;
            let mut parts = Vec::new();
            while let Some(part) = multipart.next().await? {
                let mut bytes = Vec::new();
                while let Some(piece) = multipart.piece().await? {
                    bytes.extend_from_slice(&piece);
                }
                parts.push((part, bytes));
            }
            Ok(parts)
        })
    }

    fn head(disposition: &str) -> String {
        format!("Content-Disposition: form-data; {disposition}\r\nContent-Type: text/plain\r\n\r\n")
    }

    #[test]
    fn parts_come_out_however_the_body_is_cut() {
        let (one, two) = (head("name=\"file\"; filename=\"/a b/ü.txt\""), head("name=file; filename=\"/c\""));
        let body = format!("--XX\r\n{one}first\r\n--X\r\n--XX  \r\n{two}\r\n--XX--\r\nepilogue");
        for piece in [1, 2, 3, 7, 1000] {
            let parts = read(body.as_bytes(), piece).expect("reads");
            assert_eq!(parts.len(), 2, "in pieces of {piece}");
            assert_eq!(parts[0].0.filename.as_deref(), Some("/a b/ü.txt"));
            assert_eq!(parts[0].1, b"first\r\n--X");
            assert_eq!((parts[1].0.name.as_str(), parts[1].1.len()), ("file", 0));
        }
    }

    #[test]
    fn names_are_read_as_clients_write_them() {
        for (written, wanted) in [
            ("filename=\"a%22b\"", "a\"b"),
            ("filename=\"a\\\\b\"", "a\\b"),
            ("filename=\"x\"; filename*=utf-8''%C3%BC", "ü"),
            ("filename*=utf-8''%C3%BC; filename=\"x\"", "ü"),
        ] {
            let read = part(head(&format!("name=\"file\"; {written}")).as_bytes()).expect("reads");
            assert_eq!(read.filename.as_deref(), Some(wanted), "{written}");
        }
    }

    #[test]
    fn what_is_no_multipart_body_is_refused() {
        let kind = |content_type: &str| Multipart::new(content_type, VecDeque::new()).map(drop);
        assert!(kind("multipart/form-data").is_err());
        assert!(kind(&format!("multipart/form-data; boundary={}", "x".repeat(71))).is_err());
        let long = format!("--XX\r\nA: {}", "x".repeat(HEAD_BYTES + 10));
        for wrong in ["", "--XX", "--XX\r\n", &long, "--XX\r\nno header\r\n\r\n--XX--"] {
            assert!(read(wrong.as_bytes(), 100).is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn any_content_survives(content in proptest::collection::vec(any::<u8>(), 0..300), piece in 1_usize..40) {
            prop_assume!(memmem::find(&content, b"\r\n--XX").is_none());
            let mut body = format!("--XX\r\n{}", head("name=file")).into_bytes();
            body.extend_from_slice(&content);
            body.extend_from_slice(b"\r\n--XX--");
            prop_assert_eq!(&read(&body, piece).expect("reads")[0].1, &content);
        }
    }
}
