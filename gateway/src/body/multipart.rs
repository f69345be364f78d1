// SPDX-License-Identifier: Apache-2.0
//! `multipart/form-data` (RFC 7578), taken apart strictly and put together again.
//!
//! Readers for servers (`multer`, `busboy`) forgive: they skip what stands around the parts, take
//! the first of two names and decode names as each likes. Here all of that is refused, as is every
//! name that two of them would decode differently; what goes on holds name, file name, type and
//! content of each part and nothing else. A part of a JSON type is JSON, judged like a body.

use crate::reject::Reject;
use bytes::{Bytes, BytesMut};
use percent_encoding::percent_decode_str;
use postern_openapi::parameters::Field;
use postern_openapi::{ContentKind, MediaType, json, limits};
use serde_json::Value;

/// Bytes of one part's headers. Names and file names are short.
const PART_HEADERS: usize = 8 * 1024;
/// RFC 2046 §5.1.1.
const BOUNDARY: usize = 70;

/// A body of named parts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Multipart {
    boundary: String,
    pub(crate) parts: Vec<Part>,
}

/// One part.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Part {
    pub(crate) name: String,
    file_name: Option<String>,
    media: Option<MediaType>,
    pub(crate) content: PartContent,
}

/// What a part holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum PartContent {
    Text(String),
    Json(Value),
    /// Not looked into.
    File(Bytes),
}

impl Part {
    /// A field of text.
    pub(crate) fn text(name: &str, value: &str) -> Self {
        Self {
            name: name.to_owned(),
            file_name: None,
            media: None,
            content: PartContent::Text(value.to_owned()),
        }
    }

    /// The part as a schema judges it.
    pub(crate) fn field(&self) -> Field<'_> {
        match &self.content {
            PartContent::Text(text) => Field::Text(text),
            PartContent::Json(value) => Field::Json(value),
            PartContent::File(bytes) => Field::File { bytes: bytes.len() },
        }
    }

    /// Its type; what has none is plain text (RFC 7578 §4.4).
    pub(crate) fn essence(&self) -> &str {
        self.media.as_ref().map_or("text/plain", MediaType::essence)
    }
}

fn refused(what: &str) -> Reject {
    Reject::Malformed(format!("the multipart body {what}"))
}

impl Multipart {
    /// Takes a body apart; `limits` are those of a JSON part.
    pub(super) fn parse(bytes: &Bytes, media: &MediaType, limits: json::Limits) -> Result<Self, Reject> {
        let boundary = boundary(media)
            .ok_or(Reject::ContentType("`boundary` of the multipart body is missing or odd"))?;
        let first = format!("--{boundary}\r\n");
        let delimiter = format!("\r\n--{boundary}");
        if !bytes.starts_with(first.as_bytes()) {
            return Err(refused("does not begin with its boundary"));
        }
        let mut rest = bytes.slice(first.len()..);
        let mut parts = Vec::new();
        loop {
            if parts.len() >= limits::QUERY_PAIRS {
                return Err(refused("has too many parts"));
            }
            let end =
                find(&rest, delimiter.as_bytes()).ok_or_else(|| refused("does not end with its boundary"))?;
            parts.push(part(&rest.slice(..end), limits)?);
            rest = rest.slice(end + delimiter.len()..);
            if rest.starts_with(b"\r\n") {
                rest = rest.slice(2..);
            } else if matches!(&rest[..], b"--" | b"--\r\n") {
                return Ok(Self { boundary: boundary.to_owned(), parts });
            } else {
                return Err(refused("has its boundary where none may be"));
            }
        }
    }

    /// The body as it is sent. Its boundary is the client's: no part holds it, and what we wrote
    /// into parts since holds no line feed.
    pub(crate) fn rebuild(&self) -> Bytes {
        let mut body = BytesMut::new();
        for part in &self.parts {
            let name = escaped(&part.name);
            body.extend_from_slice(
                format!("--{}\r\ncontent-disposition: form-data; name=\"{name}\"", self.boundary).as_bytes(),
            );
            if let Some(file_name) = &part.file_name {
                body.extend_from_slice(format!("; filename=\"{}\"", escaped(file_name)).as_bytes());
            }
            if let Some(media) = &part.media {
                body.extend_from_slice(format!("\r\ncontent-type: {media}").as_bytes());
            }
            body.extend_from_slice(b"\r\n\r\n");
            match &part.content {
                PartContent::Text(text) => body.extend_from_slice(text.as_bytes()),
                PartContent::Json(value) => body.extend_from_slice(&json::write(value)),
                PartContent::File(bytes) => body.extend_from_slice(bytes),
            }
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(format!("--{}--\r\n", self.boundary).as_bytes());
        body.freeze()
    }
}

/// Names as browsers write them: quotes and control characters percent-encoded.
fn escaped(name: &str) -> String {
    let mut written = String::new();
    for character in name.chars() {
        match character {
            '"' => written.push_str("%22"),
            '\\' => written.push_str("%5C"),
            control if control.is_control() => {}
            plain => written.push(plain),
        }
    }
    written
}

fn boundary(media: &MediaType) -> Option<&str> {
    let boundary = media.parameter("boundary")?;
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=?".contains(&byte);
    ((1..=BOUNDARY).contains(&boundary.len()) && boundary.bytes().all(is_part)).then_some(boundary)
}

/// Linear: what is looked for begins with its only carriage return.
fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

fn part(bytes: &Bytes, limits: json::Limits) -> Result<Part, Reject> {
    let head = bytes.get(..PART_HEADERS.min(bytes.len())).unwrap_or_default();
    let end =
        find(head, b"\r\n\r\n").ok_or_else(|| refused("has a part without headers, or with too many"))?;
    let mut slots = [httparse::EMPTY_HEADER; 8];
    // Line feeds alone would end headers for httparse, and lines for it alone.
    let lines = head.get(..end).unwrap_or_default();
    let has_bare = String::from_utf8_lossy(lines).split("\r\n").any(|line| line.contains(['\r', '\n']));
    let headers = match httparse::parse_headers(head, &mut slots) {
        Ok(httparse::Status::Complete((read, headers))) if read == end + 4 && !has_bare => headers,
        _ => return Err(refused("has a part with unreadable headers")),
    };
    let mut disposition = None;
    let mut media = None;
    for header in headers {
        let value = std::str::from_utf8(header.value)
            .map_err(|_not_utf8| refused("has a header that is no UTF-8"))?;
        let is_second = match header.name.to_ascii_lowercase().as_str() {
            "content-disposition" => disposition.replace(value).is_some(),
            "content-type" => media.replace(value).is_some(),
            "content-transfer-encoding" => {
                !["7bit", "8bit", "binary"].iter().any(|it| value.eq_ignore_ascii_case(it))
            }
            // Means nothing here, and goes no further.
            _ => false,
        };
        if is_second {
            return Err(refused("has a part with a header twice, or encoded"));
        }
    }
    let media = media
        .map(MediaType::parse)
        .transpose()
        .map_err(|refusal| refused(&format!("has a part of unknown type: {refusal}")))?;
    let (name, file_name) = disposition
        .and_then(names)
        .ok_or_else(|| refused("has a part whose name two servers could read differently"))?;
    let content = content(&bytes.slice(end + 4..), media.as_ref(), file_name.is_some(), limits)?;
    Ok(Part { name, file_name, media, content })
}

fn content(
    bytes: &Bytes,
    media: Option<&MediaType>,
    is_file: bool,
    limits: json::Limits,
) -> Result<PartContent, Reject> {
    let essence = media.map_or("text/plain", MediaType::essence);
    let charset = media.and_then(|media| media.parameter("charset"));
    match ContentKind::of(essence) {
        ContentKind::Json => {
            let value = json::parse(bytes, limits);
            value
                .map(PartContent::Json)
                .map_err(|malformed| refused(&format!("has a part that is no JSON: {malformed}")))
        }
        ContentKind::Form | ContentKind::Multipart => Err(refused("has a part with fields of its own")),
        ContentKind::Other if is_file || !essence.starts_with("text/") => {
            Ok(PartContent::File(bytes.clone()))
        }
        ContentKind::Other if charset.is_some_and(|charset| !charset.eq_ignore_ascii_case("utf-8")) => {
            Err(refused("has text that is not UTF-8"))
        }
        ContentKind::Other => match std::str::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => Ok(PartContent::Text(text.to_owned())),
            _ => Err(refused("has text that is not UTF-8")),
        },
    }
}

/// Name and file name of a `Content-Disposition`; `None` if it is not `form-data` with one plain name.
fn names(disposition: &str) -> Option<(String, Option<String>)> {
    let (kind, mut rest) = disposition.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("form-data") {
        return None;
    }
    let (mut name, mut file_name, mut extended) = (None, None, None);
    loop {
        let (key, after) = rest.trim_start_matches([' ', '\t']).split_once('=')?;
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_at(after.find(';').unwrap_or(after.len())),
        };
        let slot = match key.to_ascii_lowercase().as_str() {
            "name" => &mut name,
            "filename" => &mut file_name,
            "filename*" => &mut extended,
            _ => return None,
        };
        if slot.replace(value.to_owned()).is_some() {
            return None;
        }
        rest = match after.trim_start_matches([' ', '\t']) {
            "" => break,
            more => more.strip_prefix(';')?,
        };
    }
    let name = name.filter(|name| is_plain(name) && !name.is_empty())?;
    let extended = extended.map(|text| decoded(&text)).map_or(Some(None), |text| text.map(Some))?;
    let file_name = file_name.or(extended);
    file_name
        .as_deref()
        .is_none_or(|it| !it.contains(|it: char| it.is_control() || it == '\\'))
        .then_some((name, file_name))
}

/// A name that no server decodes: no escapes of percent, backslash or RFC 2047.
fn is_plain(name: &str) -> bool {
    !name.contains(|it: char| it.is_control() || it == '\\' || it == '%') && !name.contains("=?")
}

/// RFC 8187, in UTF-8 alone.
fn decoded(text: &str) -> Option<String> {
    let (charset, rest) = text.split_once('\'')?;
    let (_language, value) = rest.split_once('\'')?;
    let value = percent_decode_str(value).decode_utf8().ok()?;
    charset.eq_ignore_ascii_case("utf-8").then(|| value.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(body: &str) -> Result<Multipart, Reject> {
        let media = MediaType::parse("multipart/form-data; boundary=x").expect("a type");
        Multipart::parse(&Bytes::copy_from_slice(body.as_bytes()), &media, json::Limits::default())
    }

    fn one(headers: &str, content: &str) -> String {
        format!("--x\r\n{headers}\r\n\r\n{content}\r\n--x--\r\n")
    }

    const NAMED: &str = "Content-Disposition: form-data; name=\"a\"";

    #[test]
    fn parts_come_out_in_one_form() {
        let file = "content-DISPOSITION: form-data; name=file; filename=\"caf\u{e9}.png\"\r\nContent-Type: IMAGE/png\r\nX-Odd: 1";
        let body = format!("--x\r\n{NAMED}\r\n\r\n\r\nline\r\n\r\n--x\r\n{file}\r\n\r\n\0\r\n--x--");
        let read = read(&body).expect("read");
        assert_eq!(read.parts[0].content, PartContent::Text("\r\nline\r\n".into()));
        assert_eq!(read.parts[1].content, PartContent::File(Bytes::from_static(b"\0")));
        let written = String::from_utf8(read.rebuild().to_vec()).expect("UTF-8");
        assert_eq!(
            written,
            "--x\r\ncontent-disposition: form-data; name=\"a\"\r\n\r\n\r\nline\r\n\r\n--x\r\ncontent-disposition: form-data; name=\"file\"; filename=\"caf\u{e9}.png\"\r\ncontent-type: image/png\r\n\r\n\0\r\n--x--\r\n"
        );
    }

    #[test]
    fn what_readers_forgive_is_refused() {
        assert!(read(&one(NAMED, "1")).is_ok(), "the control");
        for body in [
            format!("preamble\r\n{}", one(NAMED, "1")),
            format!("{}epilogue", one(NAMED, "1")),
            format!("--x\r\n{NAMED}\r\n\r\n1\r\n--xy\r\n\r\n2\r\n--x--"),
            format!("--x\r\n{NAMED}\r\n\r\n1\r\n--x \r\n\r\n2\r\n--x--"),
            format!("--x\r\n{NAMED}\r\n\r\n1"),
            format!("--x\n{NAMED}\n\n1\n--x--\n"),
            "--x--\r\n".into(),
            one("Content-Type: text/plain", "1"),
            one("Content-Disposition: form-data", "1"),
            one("Content-Disposition: attachment; name=\"a\"", "1"),
            one("Content-Disposition: form-data; name=\"a\"; name=\"user_id\"", "1"),
            one("Content-Disposition: form-data; name=\"a\"; name*=utf-8''user_id", "1"),
            one("Content-Disposition: form-data; name=\"a\\\"; x=\\\"\"", "1"),
            one("Content-Disposition: form-data; name=\"user%5fid\"", "1"),
            one("Content-Disposition: form-data; name=\"=?utf-8?Q?user=5fid?=\"", "1"),
            one("Content-Disposition: form-data; name=\"\"", "1"),
            one(&format!("{NAMED}\r\nContent-Disposition: form-data; name=\"user_id\""), "1"),
            one(&format!("{NAMED}\r\nContent-Type: text/plain\r\nContent-Type: text/html"), "1"),
            one(&format!("{NAMED}\r\nContent-Transfer-Encoding: base64"), "MQ=="),
            one(&format!("{NAMED}\r\nContent-Type: text/plain; charset=utf-16"), "1"),
            one(&format!("{NAMED}\r\nContent-Type: multipart/mixed; boundary=y"), "--y--"),
            one(&format!("{NAMED}\r\nContent-Type: application/x-www-form-urlencoded"), "user_id=1"),
            one(&format!("{NAMED}\r\nContent-Type: application/json"), "{\"a\":1,\"a\":2}"),
            one(&format!("{NAMED}\r\n folded"), "1"),
            one(&format!("{NAMED}\n\nContent-Type: text/plain"), "1"),
            one(&format!("{NAMED}\nContent-Type: text/plain"), "1"),
            one(NAMED, "a\0b"),
        ] {
            assert!(read(&body).is_err(), "{body:?}");
        }
        for boundary in ["", "a b", "\"\"", "\u{e9}"] {
            let media = MediaType::parse(&format!("multipart/form-data; boundary=\"{boundary}\""));
            assert!(media.ok().is_none_or(|media| super::boundary(&media).is_none()), "{boundary}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_the_same(parts in proptest::collection::vec(("[a-z_\u{e9}]{1,6}", "[a-z\r\n-]{0,12}"), 1..4)) {
            let parts: Vec<_> = parts.iter().map(|(name, value)| Part::text(name, value)).collect();
            let whole = Multipart { boundary: "x".into(), parts };
            let media = MediaType::parse("multipart/form-data; boundary=x").expect("a type");
            let read = Multipart::parse(&whole.rebuild(), &media, json::Limits::default());
            // A content that holds the boundary is another body, or none.
            if whole.parts.iter().all(|part| !format!("{:?}", part.content).contains("--x")) {
                prop_assert_eq!(read.ok(), Some(whole));
            }
        }

        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(prop_oneof![Just(b'-'), Just(b'x'), Just(b'\r'), Just(b'\n'), any::<u8>()], 0..64)) {
            let media = MediaType::parse("multipart/form-data; boundary=x").expect("a type");
            let body = [b"--x\r\n", NAMED.as_bytes(), b"\r\n\r\n", &bytes[..], b"\r\n--x--"].concat();
            drop(Multipart::parse(&body.into(), &media, json::Limits::default()));
            drop(Multipart::parse(&bytes.into(), &media, json::Limits::default()));
        }
    }
}
