// SPDX-License-Identifier: Apache-2.0
//! `GET /files` and `POST /files`: one file out, one or several files in, a piece at a time.
//!
//! A file is written where it lies, as the SDKs expect of watchers and links: an upload that breaks
//! off leaves what had come.

use super::entry::METADATA;
use super::multipart::{Multipart, Source};
use super::{Files, failed, path};
use crate::connect::{self, Body, Code, Failure};
use crate::user;
use bytes::{Bytes, BytesMut};
use flate2::Compression;
use flate2::write::{GzEncoder, MultiGzDecoder};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use percent_encoding::percent_decode_str;
use rustix::fs::XattrFlags;
use serde::Serialize;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is read or written at a time.
const PIECE_BYTES: usize = 64 << 10;
/// Request headers that begin so are a file's metadata.
const METADATA_HEADER: &str = "x-metadata-";
/// Metadata of one file: entries, and bytes of a name and its value.
const METADATA_ENTRIES: usize = 32;
const METADATA_BYTES: usize = 1024;
/// Files of one body.
const PARTS: usize = 1000;

/// A file that was written.
#[derive(Serialize)]
struct Written {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    path: String,
}

/// Answers a call on `/files`.
pub(crate) async fn answer(files: &Files, head: &Parts, body: Incoming) -> Response<Body> {
    let answered = match head.method {
        Method::GET => read(files, head).await,
        Method::POST => write(files, head, body).await,
        _ => return refusal(StatusCode::METHOD_NOT_ALLOWED, "there are GET and POST"),
    };
    answered.unwrap_or_else(|failure| refused(&failure))
}

/// A failed call of plain HTTP, as its caller is told.
pub(super) fn refused(failure: &Failure) -> Response<Body> {
    let status = match failure.code {
        Code::ResourceExhausted => StatusCode::INSUFFICIENT_STORAGE,
        code => code.status(),
    };
    refusal(status, &failure.message)
}

pub(super) fn refusal(status: StatusCode, message: &str) -> Response<Body> {
    #[derive(Serialize)]
    struct Refusal<'a> {
        code: u16,
        message: &'a str,
    }
    // A number and a string always serialize.
    let json = serde_json::to_vec(&Refusal { code: status.as_u16(), message }).unwrap_or_default();
    connect::json_response(status, json)
}

/// A parameter of the query.
pub(super) fn parameter(head: &Parts, name: &str) -> Option<String> {
    let pairs = head.uri.query().unwrap_or_default().split('&');
    let value =
        pairs.filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name)?.1.replace('+', " ");
    Some(percent_decode_str(&value).decode_utf8_lossy().into_owned())
}

pub(super) fn check_user(head: &Parts) -> Result<(), Failure> {
    user::of_header(&head.headers)?;
    parameter(head, "username").map_or(Ok(()), |name| user::named(&name))
}

/// A file on its way out.
struct Opened {
    file: File,
    first: Bytes,
    /// Bytes that are still to come.
    left: u64,
}

async fn read(files: &Files, head: &Parts) -> Result<Response<Body>, Failure> {
    check_user(head)?;
    let path = files.resolve(&parameter(head, "path").unwrap_or_default())?;
    let opened = files.disk.run(move || open(&path).map_err(|error| failed(&path, &error))).await?;
    let accepted = head.headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok());
    let is_packed = accepted.is_some_and(accepts_gzip);
    let length = u64::try_from(opened.first.len()).unwrap_or(u64::MAX).saturating_add(opened.left);
    let body = if is_packed {
        packed(files.clone(), opened)
    } else if opened.left == 0 {
        connect::whole(opened.first)
    } else {
        plain(files.clone(), opened)
    };
    let mut response = connect::response(StatusCode::OK, "application/octet-stream", body);
    let headers = response.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    if is_packed {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    } else {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(response)
}

/// Whether `gzip` is named and not refused (RFC 9110 §12.5.3).
fn accepts_gzip(accepted: &str) -> bool {
    accepted.split(',').any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"))
            && !parts.any(|weight| matches!(weight, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
    })
}

fn open(path: &Path) -> io::Result<Opened> {
    let mut file = path::open_to_read(path)?;
    let length = file.metadata()?.len();
    let first = piece(&mut file, length)?;
    let left = length.saturating_sub(u64::try_from(first.len()).unwrap_or(u64::MAX));
    Ok(Opened { file, first, left })
}

/// The next bytes of a file, at most a piece of what is left.
fn piece(file: &mut File, left: u64) -> io::Result<Bytes> {
    let length = left.min(PIECE_BYTES as u64);
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(PIECE_BYTES));
    Read::by_ref(file).take(length).read_to_end(&mut bytes)?;
    if bytes.is_empty() && left > 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter"));
    }
    Ok(bytes.into())
}

fn plain(files: Files, opened: Opened) -> Body {
    let Opened { file, first, left } = opened;
    let rest = futures_util::stream::unfold((files, Some((file, left))), async |(files, state)| {
        let (mut file, left) = state.filter(|(_, left)| *left > 0)?;
        let read = files.disk.run(move || Ok(piece(&mut file, left).map(|bytes| (file, bytes)))).await;
        Some(match read {
            Ok(Ok((file, bytes))) => {
                let left = left.saturating_sub(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
                (Ok(Frame::data(bytes)), (files, Some((file, left))))
            }
            Ok(Err(error)) => (Err(error), (files, None)),
            Err(failure) => (Err(io::Error::other(failure.message)), (files, None)),
        })
    });
    let first = futures_util::stream::once(async { Ok(Frame::data(first)) });
    StreamBody::new(futures_util::StreamExt::chain(first, rest)).boxed_unsync()
}

/// What packing has got to.
struct Packing {
    file: File,
    left: u64,
    packer: GzEncoder<Vec<u8>>,
    next: Bytes,
}

fn packed(files: Files, opened: Opened) -> Body {
    let packer = GzEncoder::new(Vec::new(), Compression::fast());
    let packing = Packing { file: opened.file, left: opened.left, packer, next: opened.first };
    let frames = futures_util::stream::unfold((files, Some(packing)), async |(files, packing)| {
        let packing = packing?;
        let done = files.disk.run(move || Ok(pack(packing))).await;
        Some(match done {
            Ok(Ok((bytes, packing))) => (Ok(Frame::data(bytes)), (files, packing)),
            Ok(Err(error)) => (Err(error), (files, None)),
            Err(failure) => (Err(io::Error::other(failure.message)), (files, None)),
        })
    });
    StreamBody::new(frames).boxed_unsync()
}

/// Packs until there is something to send.
fn pack(mut packing: Packing) -> io::Result<(Bytes, Option<Packing>)> {
    loop {
        packing.packer.write_all(&packing.next)?;
        if packing.left == 0 {
            return Ok((packing.packer.finish()?.into(), None));
        }
        packing.next = piece(&mut packing.file, packing.left)?;
        packing.left = packing.left.saturating_sub(u64::try_from(packing.next.len()).unwrap_or(u64::MAX));
        if !packing.packer.get_ref().is_empty() {
            let bytes = std::mem::take(packing.packer.get_mut());
            return Ok((bytes.into(), Some(packing)));
        }
    }
}

/// What is to be written along with every file of a call.
#[derive(Clone)]
struct Along {
    is_packed: bool,
    metadata: Arc<[(String, String)]>,
}

impl Along {
    fn read(headers: &HeaderMap) -> Result<Self, Failure> {
        let is_packed = match headers.get(header::CONTENT_ENCODING).map(HeaderValue::as_bytes) {
            None | Some(b"identity") => false,
            Some(b"gzip") => true,
            Some(_) => {
                return Err(Failure::new(Code::InvalidArgument, "the only `Content-Encoding` is gzip"));
            }
        };
        Ok(Self { is_packed, metadata: metadata(headers)?.into() })
    }
}

fn metadata(headers: &HeaderMap) -> Result<Vec<(String, String)>, Failure> {
    let wrong = |how: &str| Failure::new(Code::InvalidArgument, format!("a header `X-Metadata-…` {how}"));
    let mut found = Vec::new();
    for (name, value) in headers {
        let Some(key) = name.as_str().strip_prefix(METADATA_HEADER) else { continue };
        let value = value.to_str().map_err(|_odd| wrong("holds other than visible ASCII"))?;
        if key.is_empty() || key.len() + value.len() > METADATA_BYTES {
            return Err(wrong("has no name, or more than 1024 bytes"));
        }
        found.push((format!("{METADATA}{key}"), value.to_owned()));
    }
    if found.len() > METADATA_ENTRIES {
        return Err(wrong("is there more than 32 times"));
    }
    Ok(found)
}

async fn write(files: &Files, head: &Parts, body: Incoming) -> Result<Response<Body>, Failure> {
    check_user(head)?;
    let along = Along::read(&head.headers)?;
    let asked = parameter(head, "path");
    let kind =
        head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let written = if kind.starts_with("multipart/form-data") {
        write_parts(files, Multipart::new(kind, body)?, asked.as_deref(), &along).await?
    } else {
        let missing = || Failure::new(Code::InvalidArgument, "say where to write: `?path=`");
        let path = files.resolve(&asked.ok_or_else(missing)?)?;
        let mut body = body;
        write_one(files, path, &mut body, &along).await.map(|written| vec![written])?
    };
    // Texts always serialize.
    Ok(connect::json_response(StatusCode::OK, serde_json::to_vec(&written).unwrap_or_default()))
}

async fn write_parts(
    files: &Files,
    mut parts: Multipart<Incoming>,
    asked: Option<&str>,
    along: &Along,
) -> Result<Vec<Written>, Failure> {
    let mut written = Vec::new();
    while let Some(part) = parts.next().await? {
        if part.name != "file" {
            continue;
        }
        if written.len() >= PARTS || (asked.is_some() && !written.is_empty()) {
            let detail = "there are too many files: with `?path=` there is one, else at most 1000";
            return Err(Failure::new(Code::InvalidArgument, detail));
        }
        let missing = || Failure::new(Code::InvalidArgument, "a part has no `filename` to write to");
        let path = files.resolve(
            asked.map_or(part.filename, |path| Some(path.to_owned())).ok_or_else(missing)?.as_str(),
        )?;
        written.push(write_one(files, path, &mut parts, along).await?);
    }
    if written.is_empty() {
        return Err(Failure::new(Code::InvalidArgument, "the body has no part named `file`"));
    }
    Ok(written)
}

/// A file on its way in.
enum Writer {
    Plain(File),
    Packed(Box<MultiGzDecoder<File>>),
}

impl Writer {
    fn open(path: &Path, is_packed: bool) -> io::Result<Self> {
        let file = path::open_to_write(path)?;
        Ok(if is_packed { Self::Packed(Box::new(MultiGzDecoder::new(file))) } else { Self::Plain(file) })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(file) => file.write_all(bytes),
            Self::Packed(unpacker) => unpacker.write_all(bytes),
        }
    }

    fn finish(&mut self, metadata: &[(String, String)]) -> io::Result<()> {
        let file = match self {
            Self::Plain(file) => file,
            Self::Packed(unpacker) => {
                unpacker.try_finish()?;
                unpacker.get_mut()
            }
        };
        for (name, value) in metadata {
            rustix::fs::fsetxattr(&*file, name.as_str(), value.as_bytes(), XattrFlags::empty())?;
        }
        Ok(())
    }
}

async fn write_one(
    files: &Files,
    path: PathBuf,
    from: &mut impl Source,
    along: &Along,
) -> Result<Written, Failure> {
    let mut buffer = BytesMut::new();
    let mut writer = None;
    loop {
        let is_last = !gather(from, &mut buffer).await?;
        let (bytes, at, along, last) = (buffer.split().freeze(), path.clone(), along.clone(), writer.take());
        let step = move || {
            let mut writer = last.map_or_else(|| Writer::open(&at, along.is_packed), Ok)?;
            writer.write(&bytes)?;
            if is_last {
                writer.finish(&along.metadata)?;
            }
            Ok(writer)
        };
        let at = path.clone();
        writer = Some(files.disk.run(move || step().map_err(|error| failed(&at, &error))).await?);
        if is_last {
            break;
        }
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Written { name, kind: "file", path: path.to_string_lossy().into_owned() })
}

/// Collects a piece worth writing; whether there may be more.
async fn gather(from: &mut impl Source, buffer: &mut BytesMut) -> Result<bool, Failure> {
    while buffer.len() < PIECE_BYTES {
        match from.piece().await? {
            Some(bytes) => buffer.extend_from_slice(&bytes),
            None => return Ok(false),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_is_for_those_who_accept_it() {
        assert!(accepts_gzip("gzip") && accepts_gzip("br, gzip;q=0.5") && accepts_gzip("GZIP"));
        assert!(!accepts_gzip("identity") && !accepts_gzip("gzip;q=0") && !accepts_gzip("xgzip"));
    }

    #[test]
    fn metadata_comes_of_its_headers_and_is_bounded() {
        let mut headers = HeaderMap::new();
        headers.insert("x-metadata-author", HeaderValue::from_static("alice"));
        headers.insert("x-other", HeaderValue::from_static("not"));
        assert_eq!(metadata(&headers), Ok(vec![("user.e2b.author".to_owned(), "alice".to_owned())]));
        headers
            .insert("x-metadata-long", HeaderValue::from_str(&"x".repeat(METADATA_BYTES)).expect("a value"));
        assert_eq!(metadata(&headers).expect_err("too long").code, Code::InvalidArgument);
    }

    #[test]
    fn a_file_that_shrinks_cuts_the_answer_off() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(3 * PIECE_BYTES as u64).expect("grows");
        let mut opened = open(file.path()).expect("opens");
        file.as_file().set_len(10).expect("shrinks");
        assert_eq!(
            piece(&mut opened.file, opened.left).expect_err("is shorter").kind(),
            io::ErrorKind::UnexpectedEof
        );
    }

    #[test]
    fn packed_content_is_the_content() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let content: Vec<u8> =
            (0..5 * PIECE_BYTES).map(|place| u8::try_from(place % 251).expect("fits")).collect();
        std::fs::write(file.path(), &content).expect("writes");
        let opened = open(file.path()).expect("opens");
        let packer = GzEncoder::new(Vec::new(), Compression::fast());
        let mut packing = Some(Packing { file: opened.file, left: opened.left, packer, next: opened.first });
        let copy = tempfile::NamedTempFile::new().expect("a file");
        let mut writer = Writer::open(copy.path(), true).expect("opens");
        while let Some(now) = packing {
            let (bytes, next) = pack(now).expect("packs");
            writer.write(&bytes).expect("unpacks");
            packing = next;
        }
        writer.finish(&[]).expect("is whole");
        assert_eq!(std::fs::read(copy.path()).expect("reads"), content);
        let mut cut = Writer::open(copy.path(), true).expect("opens");
        cut.write(&[0x1f, 0x8b, 8]).expect("begins");
        assert!(cut.finish(&[]).is_err(), "what is cut off is not whole");
    }
}
