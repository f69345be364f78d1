// SPDX-License-Identifier: Apache-2.0
//! A user's files over HTTP: listed, read, written, copied, removed, with the conditions of
//! RFC 9110 §13 and §14 over versions, which are strong validators.

use super::input::{Fields, mistaken};
use super::problems::Refused;
use super::{Answer, Api, Call, empty, etag, json};
use crate::configuration::Expected;
use crate::storage::{
    Condition, Digest, Edit, FileEntry, FilePath, NewFile, Reading, StorageError, UserFiles, Version, Writer,
};
use crate::store::page_size;
use axum::body::Body;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use jiff::fmt::rfc2822::DateTimePrinter;
use postern_common::id::{TenantId, UserId};
use postern_common::problem::{Code, Problem};
use serde_json::{Value, json as value};
use std::ops::Range;
use std::sync::Arc;

/// A digest of the whole file (RFC 9530).
const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");
/// How often a file that changes in between is read anew.
const TRIES: usize = 3;
/// What a link says at most (`PATH_MAX`).
const TARGET_BYTES: usize = 4095;

/// Whose files a call is about.
pub(super) fn owner(call: &Call) -> Result<(TenantId, UserId), Problem> {
    Ok((call.tenant()?, call.path("user_id")?))
}

fn files(api: &Api, call: &Call) -> Result<UserFiles, Problem> {
    let (tenant, user) = owner(call)?;
    Ok(api.storage.of(&tenant, &user))
}

fn path(call: &Call) -> Result<FilePath, Problem> {
    let text: String = call.path("path")?;
    FilePath::parse(&text).map_err(|bad| Problem::new(Code::RequestMalformed, bad.to_string()))
}

pub(super) fn writer(call: &Call) -> Result<Writer, Problem> {
    Ok(Writer::new(call.actor()?))
}

/// `GET /users/{user_id}/files`: a page. The first one looks at the store itself.
pub(super) async fn list(api: Arc<Api>, call: Call) -> Answer {
    let files = files(&api, &call)?;
    let prefix = call.query.text("prefix").unwrap_or_default();
    let limit = page_size(call.query.parsed("limit")?);
    let after: Option<FilePath> = call.query.parsed("after")?;
    if let Some(after) = after {
        let page = files.page(prefix, Some(&after), limit).await.map_err(Refused::from)?;
        let next = next(&page, limit);
        return json(StatusCode::OK, &value!({ "files": page, "next": next }));
    }
    let listing = files.list().await.map_err(Refused::from)?;
    let begins = |path: &FilePath| path.as_str().starts_with(prefix);
    let limit_files = usize::try_from(limit).unwrap_or(usize::MAX);
    let page: Vec<FileEntry> =
        listing.files.into_iter().filter(|file| begins(&file.path)).take(limit_files).collect();
    let folders = listing.folders.iter().filter(|(path, _)| begins(path));
    let folders: Vec<_> = folders.map(|(path, mode)| value!({ "path": path, "mode": mode })).collect();
    let links = listing.links.iter().filter(|(path, _)| begins(path));
    let links: Vec<_> = links.map(|(path, target)| value!({ "path": path, "target": target })).collect();
    let next = next(&page, limit);
    json(StatusCode::OK, &value!({ "files": page, "folders": folders, "links": links, "next": next }))
}

/// What the next page comes after; none if this one is not full.
fn next(page: &[FileEntry], limit: u32) -> Option<FilePath> {
    let is_full = u32::try_from(page.len()).is_ok_and(|count| count >= limit);
    page.last().filter(|_| is_full).map(|last| last.path.clone())
}

/// `GET /users/{user_id}/files/{path}`.
pub(super) async fn read(api: Arc<Api>, call: Call) -> Answer {
    let (files, path) = (files(&api, &call)?, path(&call)?);
    answer_read(&files, &path, &call.headers).await
}

/// Answers a read of a file, as its conditions and range say.
pub(super) async fn answer_read(files: &UserFiles, path: &FilePath, headers: &HeaderMap) -> Answer {
    let is_plain = ![header::RANGE, header::IF_MATCH, header::IF_NONE_MATCH, header::IF_RANGE]
        .iter()
        .any(|name| headers.contains_key(name));
    if is_plain {
        let reading = files.read(path, None, None).await.map_err(Refused::from)?;
        return Ok(content(reading, StatusCode::OK));
    }
    for _ in 0..TRIES {
        let entry = found(files, path).await?;
        if let Some(answer) = judged(headers, &entry)? {
            return Ok(answer);
        }
        let range = range(headers, &entry)?;
        let status = if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
        match files.read(path, range, Some(&entry.version)).await {
            Ok(reading) => return Ok(content(reading, status)),
            // Written in between: judged anew.
            Err(StorageError::Conflict { .. }) => {}
            Err(error) => return Err(Refused::from(error).into()),
        }
    }
    Err(Problem::new(Code::StateConflict, "the file changes all the time").hint("try again"))
}

/// `HEAD /users/{user_id}/files/{path}`.
pub(super) async fn head(api: Arc<Api>, call: Call) -> Answer {
    let (files, path) = (files(&api, &call)?, path(&call)?);
    let entry = found(&files, &path).await?;
    if let Some(answer) = judged(&call.headers, &entry)? {
        return Ok(answer);
    }
    let mut response = empty(StatusCode::OK);
    describe(response.headers_mut(), &entry);
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(entry.size));
    Ok(response)
}

async fn found(files: &UserFiles, path: &FilePath) -> Result<FileEntry, Problem> {
    let found = files.find(path).await.map_err(Refused::from)?;
    found.ok_or_else(|| Refused::from(StorageError::NotFound(path.clone())).into())
}

/// The answer if a condition decides it.
fn judged(headers: &HeaderMap, entry: &FileEntry) -> Result<Option<Response>, Problem> {
    let version = entry.version.as_str();
    if !etag::is_wanted(headers, version)? {
        return Err(Problem::new(Code::PreconditionFailed, "the file is another version by now")
            .hint("GET it again, take its ETag, and decide anew"));
    }
    if etag::is_known(headers, version)? {
        let mut response = empty(StatusCode::NOT_MODIFIED);
        describe(response.headers_mut(), entry);
        return Ok(Some(response));
    }
    Ok(None)
}

/// The range that is asked for. Several at once, or of another version (`If-Range`), are answered
/// with the whole, as RFC 9110 §14.2 allows.
fn range(headers: &HeaderMap, entry: &FileEntry) -> Result<Option<Range<u64>>, Problem> {
    let Some(text) = headers.get(header::RANGE).and_then(|value| value.to_str().ok()) else {
        return Ok(None);
    };
    if let Some(wanted) = headers.get(header::IF_RANGE)
        && wanted.as_bytes() != etag::of(entry.version.as_str()).as_bytes()
    {
        return Ok(None);
    }
    let Some((begin, end)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Ok(None);
    };
    let size = entry.size;
    let (begin, end) = match (begin.trim().parse::<u64>(), end.trim()) {
        (Ok(begin), "") => (begin, size),
        (Ok(begin), end) => match end.parse::<u64>() {
            Ok(end) if end >= begin => (begin, end.saturating_add(1).min(size)),
            _ => return Ok(None),
        },
        (Err(_), end) if begin.trim().is_empty() => match end.parse::<u64>() {
            Ok(last) => (size.saturating_sub(last), size),
            Err(_other) => return Ok(None),
        },
        (Err(_), _) => return Ok(None),
    };
    if begin >= size {
        return Err(Refused::from(StorageError::Range { size }).into());
    }
    Ok(Some(begin..end))
}

fn content(reading: Reading, status: StatusCode) -> Response {
    let Reading { about, range, content } = reading;
    let mut response = Response::new(Body::from_stream(content));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    describe(headers, &about);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
    if status == StatusCode::PARTIAL_CONTENT {
        let text = format!("bytes {}-{}/{}", range.start, range.end.saturating_sub(1), about.size);
        insert(headers, header::CONTENT_RANGE, &text);
    }
    response
}

fn describe(headers: &mut HeaderMap, entry: &FileEntry) {
    headers.insert(header::ETAG, etag::of(entry.version.as_str()));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    // Never a page in whatever origin the API is reached by.
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    let kind = entry.content_type.as_deref().unwrap_or("application/octet-stream");
    insert(headers, header::CONTENT_TYPE, kind);
    if let Ok(date) = DateTimePrinter::new().timestamp_to_rfc9110_string(&entry.modified) {
        insert(headers, header::LAST_MODIFIED, &date);
    }
    if let Some(digest) = entry.digest {
        insert(headers, REPR_DIGEST, &format!("sha-256=:{}:", BASE64.encode(digest.as_bytes())));
    }
}

fn insert(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(name, value);
    }
}

/// `PUT /users/{user_id}/files/{path}`.
pub(super) async fn write(api: Arc<Api>, mut call: Call) -> Answer {
    let (files, path, by) = (files(&api, &call)?, path(&call)?, writer(&call)?);
    let condition = condition(&call.headers, &files, &path).await?;
    let about = NewFile {
        size: size(&call.headers)?,
        digest: digest(&call.headers)?,
        mode: call.query.text("mode").map(mode).transpose()?,
        modified: call.query.parsed("modified")?,
        content_type: content_type(&call.headers)?,
    };
    let content = call.content();
    let entry = files.write(&by, &path, &condition, about, content).await.map_err(Refused::from)?;
    let status = if condition == Condition::Nothing { StatusCode::CREATED } else { StatusCode::OK };
    shown(status, &entry)
}

pub(super) fn shown(status: StatusCode, entry: &FileEntry) -> Answer {
    let mut response = json(status, entry)?;
    response.headers_mut().insert(header::ETAG, etag::of(entry.version.as_str()));
    Ok(response)
}

/// `DELETE /users/{user_id}/files/{path}`.
pub(super) async fn remove(api: Arc<Api>, call: Call) -> Answer {
    let (files, path, by) = (files(&api, &call)?, path(&call)?, writer(&call)?);
    let condition = condition(&call.headers, &files, &path).await?;
    if files.remove(&by, &path, &condition).await.map_err(Refused::from)? {
        Ok(empty(StatusCode::NO_CONTENT))
    } else {
        Err(Refused::from(StorageError::NotFound(path)).into())
    }
}

/// `POST /users/{user_id}/copies`: `{from, to, version?, move?}`; conditions are about `to`.
pub(super) async fn copy(api: Arc<Api>, call: Call) -> Answer {
    let (files, by) = (files(&api, &call)?, writer(&call)?);
    let mut fields = Fields::read(&call.body)?;
    let (from, to): (Option<FilePath>, Option<FilePath>) = (fields.required("from"), fields.required("to"));
    let version = fields.text("version").map(Version::from);
    let moves = fields.flag("move").unwrap_or(false);
    fields.finish()?;
    let (Some(from), Some(to)) = (from, to) else { return Err(mistaken("/from", "is required")) };
    let condition = condition(&call.headers, &files, &to).await?;
    let from = (&from, version.as_ref());
    let copied = if moves {
        files.rename(&by, from, &to, &condition).await
    } else {
        files.copy(&by, from, &to, &condition).await
    };
    shown(StatusCode::OK, &copied.map_err(Refused::from)?)
}

/// `POST /users/{user_id}/shape`: `{edits: [{path, folder|link|no_folder|no_link|mode}]}`.
pub(super) async fn shape(api: Arc<Api>, call: Call) -> Answer {
    let (files, by) = (files(&api, &call)?, writer(&call)?);
    let mut fields = Fields::read(&call.body)?;
    let Some(Value::Array(asked)) = fields.take("edits") else {
        return Err(mistaken("/edits", "is required: a list of edits"));
    };
    fields.finish()?;
    let mut edits = Vec::with_capacity(asked.len());
    for (number, edit) in asked.iter().enumerate() {
        let wrong = || mistaken(&format!("/edits/{number}"), EDIT);
        edits.push(read_edit(edit).ok_or_else(wrong)?);
    }
    files.reshape(&by, edits).await.map_err(Refused::from)?;
    Ok(empty(StatusCode::NO_CONTENT))
}

const EDIT: &str = "expected `path` and one of `folder: \"755\"`, `link: \"TARGET\"`, `mode: \"644\"`, \
     `no_folder: true`, `no_link: true`";

fn read_edit(edit: &Value) -> Option<Edit> {
    let members = edit.as_object().filter(|members| members.len() == 2)?;
    let path = FilePath::parse(members.get("path")?.as_str()?).ok()?;
    let (name, value) = members.iter().find(|(name, _)| *name != "path")?;
    match (name.as_str(), value) {
        ("folder", Value::String(text)) => Some(Edit::Folder(path, mode(text).ok()?)),
        ("mode", Value::String(text)) => Some(Edit::Mode(path, mode(text).ok()?)),
        ("link", Value::String(target)) if target.len() <= TARGET_BYTES && !target.contains('\0') => {
            Some(Edit::Link(path, target.clone()))
        }
        ("no_folder", Value::Bool(true)) => Some(Edit::NoFolder(path)),
        ("no_link", Value::Bool(true)) => Some(Edit::NoLink(path)),
        _ => None,
    }
}

/// What must be there, as the headers say. Of several versions the one that is there counts.
async fn condition(headers: &HeaderMap, files: &UserFiles, path: &FilePath) -> Result<Condition, Problem> {
    Ok(match etag::expected(headers)? {
        Expected::Anything => Condition::Anything,
        Expected::Nothing => Condition::Nothing,
        Expected::Something => Condition::Something,
        Expected::OneOf(mut versions) if versions.len() > 1 => {
            let there = files.find(path).await.map_err(Refused::from)?;
            let there = there.map(|entry| entry.version.as_str().to_owned());
            let wanted = there.filter(|there| versions.contains(there)).or_else(|| versions.pop());
            Condition::Version(Version::from(wanted.unwrap_or_default()))
        }
        Expected::OneOf(versions) => {
            Condition::Version(Version::from(versions.into_iter().next().unwrap_or_default()))
        }
    })
}

fn size(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get(header::CONTENT_LENGTH) else { return Ok(None) };
    let size = value.to_str().ok().and_then(|text| text.parse().ok());
    size.map(Some).ok_or_else(|| Problem::new(Code::RequestMalformed, "`Content-Length` is no number"))
}

pub(super) fn content_type(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(None) };
    media_type(value.to_str().unwrap_or_default()).map(Some)
}

/// A media type that may be kept and shown again.
pub(super) fn media_type(text: &str) -> Result<String, Problem> {
    const BYTES: usize = 255;
    let is_plain = text.len() <= BYTES && text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    match text.split_once('/') {
        Some((kind, rest)) if is_plain && !kind.is_empty() && !rest.is_empty() => Ok(text.to_owned()),
        _ => Err(Problem::new(Code::ContentTypeRefused, "the content type is no media type")
            .hint("send one such as `text/plain`, or none")),
    }
}

/// The digest that the content is said to have.
fn digest(headers: &HeaderMap) -> Result<Option<Digest>, Problem> {
    let Some(value) = headers.get(REPR_DIGEST).or_else(|| headers.get(CONTENT_DIGEST)) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default();
    let mut members = text.split(',').filter_map(|member| member.trim().strip_prefix("sha-256="));
    let Some(member) = members.next() else { return Ok(None) };
    let bytes = member.strip_prefix(':').and_then(|rest| rest.strip_suffix(':'));
    let bytes = bytes.and_then(|text| BASE64.decode(text).ok());
    let hex = bytes.map(|bytes| crate::keys::hex(&bytes)).unwrap_or_default();
    let wrong = |_no_digest| Problem::new(Code::RequestMalformed, "the header's SHA-256 cannot be read");
    hex.parse().map(Some).map_err(wrong)
}

/// `755`.
pub(super) fn mode(text: &str) -> Result<u32, Problem> {
    const MOST: u32 = 0o777;
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= MOST);
    mode.ok_or_else(|| mistaken("/query/mode", "expected an octal number up to 777, such as `755`"))
}
