// SPDX-License-Identifier: Apache-2.0
//! URLs that anybody may use: uploads in parts, and downloads.
//!
//! Where the store signs URLs, the bytes never pass through here. Where it does not, we sign our
//! own: each allows one method on one thing of one tenant, with its exact length and type, until it
//! expires, and is given as a path of this API.

use super::files::{media_type, mode, owner, shown, writer};
use super::input::{Fields, mistaken};
use super::problems::Refused;
use super::{Answer, Api, Call, empty, files, json};
use crate::storage::{Condition, Digest, FilePath, PART_BYTES, StorageError, Version};
use crate::store::{Action, AuditEntry, FileOwner, UploadRow};
use http::{StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use postern_common::clock;
use postern_common::id::{TenantId, UploadId, UserId, percent_encoded};
use postern_common::problem::{Code, Problem};
use serde_json::{Value, json as value};
use std::sync::Arc;
use std::time::Duration;

/// How long an upload may take unless the caller says otherwise.
const UPLOAD_TIME: Duration = Duration::from_secs(3600);
/// How long a download's URL lives unless the caller says otherwise.
const DOWNLOAD_TIME: Duration = Duration::from_secs(900);
/// The longest life of either: S3 and Google end theirs at 7 days, we sooner.
const LONGEST_TIME: Duration = Duration::from_secs(24 * 3600);
/// The smallest part: S3 takes no smaller one, and fewer requests are better.
const LEAST_PART_BYTES: u64 = 5 << 20;
/// The type of a part of which nobody said another.
const USUAL_TYPE: &str = "application/octet-stream";

/// `POST /users/{user_id}/uploads`: `{path, size, digest?, content_type?, mode?, part_size?,
/// if_match?, if_none_match?, expires_in?}`.
pub(super) async fn begin(api: Arc<Api>, call: Call) -> Answer {
    let (tenant, user) = owner(&call)?;
    let upload = wanted(&call, FileOwner { tenant: tenant.clone(), user })?;
    let audit = AuditEntry::new(upload.created_at, Some(tenant), Action::UploadBegun, call.actor()?)
        .subject(format!("upload/{}", upload.id))
        .request(Some(call.request_id.clone()));
    api.storage.begin_upload(&upload, &audit).await.map_err(Refused::from)?;
    let parts = told_parts(&api, &upload, &vec![None; usize::try_from(upload.parts()).unwrap_or(0)]).await?;
    json(StatusCode::CREATED, &told(&upload, &parts))
}

fn wanted(call: &Call, owner: FileOwner) -> Result<UploadRow, Problem> {
    let mut fields = Fields::read(&call.body)?;
    let path: Option<FilePath> = fields.required("path");
    let size = number(&mut fields, "size");
    if size.is_none() {
        fields.mistake("/size", "is required: the bytes of the file");
    }
    let part_bytes = number(&mut fields, "part_size").unwrap_or(PART_BYTES);
    if !(LEAST_PART_BYTES..=PART_BYTES).contains(&part_bytes) {
        fields.mistake("/part_size", "expected 5 MiB to 64 MiB, in bytes");
    }
    let digest: Option<Digest> = fields.parsed("digest");
    let content_type = fields.text("content_type").map(|text| media_type(&text)).transpose()?;
    let mode = fields.text("mode").map(|text| mode(&text)).transpose()?;
    let condition = condition(&mut fields);
    let time = life(&mut fields, UPLOAD_TIME);
    fields.finish()?;
    let (Some(path), Some(size)) = (path, size) else { return Err(mistaken("/path", "is required")) };
    let now = clock::now();
    Ok(UploadRow {
        id: UploadId::generate(),
        owner,
        path,
        size,
        part_bytes,
        digest,
        content_type,
        mode,
        condition,
        created_by: call.actor()?.to_string(),
        created_at: now,
        expires_at: after(now, time),
        completed: None,
    })
}

fn number(fields: &mut Fields, name: &str) -> Option<u64> {
    let number = fields.take(name)?;
    if number.as_u64().is_none() {
        fields.mistake(format!("/{name}"), "expected a number of bytes");
    }
    number.as_u64()
}

fn condition(fields: &mut Fields) -> Condition {
    let version = fields.text("if_match").map(|text| text.trim_matches('"').to_owned());
    match (version, fields.flag("if_none_match")) {
        (Some(_), Some(true)) => {
            fields.mistake("/if_none_match", "does not go with `if_match`");
            Condition::Nothing
        }
        (_, Some(true)) => Condition::Nothing,
        (Some(version), _) if version == "*" => Condition::Something,
        (Some(version), _) => Condition::Version(Version::from(version)),
        (None, _) => Condition::Anything,
    }
}

fn life(fields: &mut Fields, usual: Duration) -> Duration {
    let time = fields.duration("expires_in").unwrap_or(usual);
    if time > LONGEST_TIME {
        fields.mistake("/expires_in", "expected at most 24h");
    }
    time
}

fn after(now: Timestamp, time: Duration) -> Timestamp {
    let time = SignedDuration::try_from(time).unwrap_or(SignedDuration::ZERO);
    now.saturating_add(time).unwrap_or(now)
}

fn told(upload: &UploadRow, parts: &[Value]) -> Value {
    value!({
        "upload_id": upload.id,
        "path": upload.path,
        "size": upload.size,
        "part_size": upload.part_bytes,
        "expires_at": upload.expires_at,
        "completed": upload.completed,
        "parts": parts,
    })
}

/// Each part: whether it has come, and the request that brings it.
async fn told_parts(api: &Api, upload: &UploadRow, arrived: &[Option<u64>]) -> Result<Vec<Value>, Problem> {
    let left = Duration::try_from(upload.expires_at.duration_since(clock::now())).unwrap_or_default();
    let mut parts = Vec::with_capacity(arrived.len());
    for (part, size) in (0..).zip(arrived) {
        let wanted = upload.part_size(part);
        let presigned = api.storage.part_url(&upload.id, part, left).await.map_err(Refused::from)?;
        let mut headers = serde_json::Map::new();
        let url = match presigned {
            Some(url) => {
                let asked = api.storage.part_headers().iter();
                headers.extend(asked.map(|(name, text)| ((*name).to_owned(), Value::from(*text))));
                // The store keeps it with the part, and it is judged in the end.
                let kind = upload.content_type.iter();
                headers.extend(kind.map(|kind| ("Content-Type".to_owned(), Value::from(kind.as_str()))));
                url.to_string()
            }
            None => {
                headers.insert("Content-Type".to_owned(), Value::from(part_type(upload)));
                own_part_url(api, upload, part)
            }
        };
        parts.push(value!({ "number": part, "size": wanted, "arrived": *size == Some(wanted),
            "method": "PUT", "url": url, "headers": headers }));
    }
    Ok(parts)
}

fn part_type(upload: &UploadRow) -> &str {
    upload.content_type.as_deref().unwrap_or(USUAL_TYPE)
}

/// A path of this API that allows to write one part.
fn own_part_url(api: &Api, upload: &UploadRow, part: u32) -> String {
    let expires = upload.expires_at.as_second().to_string();
    let signature =
        api.keys.url_signature(&part_fields(upload, part, &expires).each_ref().map(String::as_str));
    format!("/uploads/{}/{part}?expires={expires}&signature={signature}", upload.id)
}

fn part_fields(upload: &UploadRow, part: u32, expires: &str) -> [String; 8] {
    [
        "PUT".to_owned(),
        upload.owner.tenant.to_string(),
        upload.owner.user.to_string(),
        upload.id.to_string(),
        part.to_string(),
        upload.part_size(part).to_string(),
        part_type(upload).to_owned(),
        expires.to_owned(),
    ]
}

fn refused() -> Problem {
    Problem::new(Code::Forbidden, "the URL is not signed for this request, or has expired")
        .hint("send exactly what it was made for, or ask for a new one")
}

/// `PUT /uploads/{id}/{part}`, by one of our own URLs.
pub(super) async fn put_part(api: Arc<Api>, mut call: Call) -> Answer {
    let id: UploadId = call.path("id").map_err(|_malformed| refused())?;
    let part: u32 = call.path("part").map_err(|_malformed| refused())?;
    let expires = call.query.text("expires").unwrap_or_default().to_owned();
    let signature = call.query.text("signature").unwrap_or_default().to_owned();
    let found = api.store.upload(&id).await.map_err(Refused::from)?;
    let upload = found.filter(|upload| part < upload.parts()).ok_or_else(refused)?;
    let fields = part_fields(&upload, part, &expires);
    let is_signed = api.keys.is_url_signature(&fields.each_ref().map(String::as_str), &signature);
    let is_live = clock::now() < upload.expires_at && upload.completed.is_none();
    let length = call.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let is_exact = length.and_then(|text| text.parse().ok()) == Some(upload.part_size(part));
    let kind = call.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if !is_signed || !is_live || !is_exact || kind != Some(part_type(&upload)) {
        return Err(refused());
    }
    let content = call.content();
    api.storage.put_part(&upload, part, content).await.map_err(Refused::from)?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// An upload of the user that the call names.
async fn of_call(api: &Api, call: &Call) -> Result<UploadRow, Problem> {
    let (tenant, user) = owner(call)?;
    let id: UploadId = call.path("id")?;
    let found = api.store.upload(&id).await.map_err(Refused::from)?;
    let found = found.filter(|upload| upload.owner == FileOwner { tenant, user });
    let found = found.filter(|upload| clock::now() < upload.expires_at);
    found.ok_or_else(|| {
        Problem::new(Code::NotFound, format!("there is no upload `{id}`, or it has expired"))
            .hint("begin a new one: `POST /users/{user_id}/uploads`")
    })
}

/// `GET /users/{user_id}/uploads/{id}`: which parts have come, with fresh URLs for all.
pub(super) async fn show(api: Arc<Api>, call: Call) -> Answer {
    let upload = of_call(&api, &call).await?;
    let arrived = api.storage.arrived(&upload).await.map_err(Refused::from)?;
    let parts = told_parts(&api, &upload, &arrived).await?;
    json(StatusCode::OK, &told(&upload, &parts))
}

/// `POST /users/{user_id}/uploads/{id}/complete`.
pub(super) async fn complete(api: Arc<Api>, call: Call) -> Answer {
    let upload = of_call(&api, &call).await?;
    if let Some(completed) = &upload.completed {
        let files = api.storage.of(&upload.owner.tenant, &upload.owner.user);
        let there = files.find(&upload.path).await.map_err(Refused::from)?;
        let there = there.filter(|entry| entry.version == *completed);
        let changed =
            || Problem::new(Code::StateConflict, "the upload was completed, and its file has changed since");
        return shown(StatusCode::OK, &there.ok_or_else(changed)?);
    }
    let written = api.storage.complete(&writer(&call)?, &upload).await;
    let entry = written.map_err(|error| match error {
        StorageError::Differs { what, .. } => {
            Problem::new(Code::InvalidInput, format!("the upload's {what} is not what was announced")).hint(
                "`GET` the upload: it tells which parts have come; send them again and complete it again",
            )
        }
        other => Refused::from(other).into(),
    })?;
    shown(StatusCode::OK, &entry)
}

/// `DELETE /users/{user_id}/uploads/{id}`.
pub(super) async fn abandon(api: Arc<Api>, call: Call) -> Answer {
    let upload = of_call(&api, &call).await?;
    api.storage.drop_parts(&upload.id).await.map_err(Refused::from)?;
    api.store.forget_upload(&upload.id).await.map_err(Refused::from)?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// `POST /users/{user_id}/downloads`: `{path, expires_in?}`.
pub(super) async fn sign_download(api: Arc<Api>, call: Call) -> Answer {
    let (tenant, user) = owner(&call)?;
    let mut fields = Fields::read(&call.body)?;
    let path: Option<FilePath> = fields.required("path");
    let time = life(&mut fields, DOWNLOAD_TIME);
    fields.finish()?;
    let Some(path) = path else { return Err(mistaken("/path", "is required")) };
    let owner = FileOwner { tenant: tenant.clone(), user };
    let there = api.storage.of(&owner.tenant, &owner.user).find(&path).await.map_err(Refused::from)?;
    if there.is_none() {
        return Err(Refused::from(StorageError::NotFound(path)).into());
    }
    let now = clock::now();
    let expires_at = after(now, time);
    let subject = format!("file/{}/{}", percent_encoded(owner.user.as_str()), path.as_str());
    let audit = AuditEntry::new(now, Some(tenant), Action::DownloadSigned, call.actor()?)
        .subject(subject)
        .request(Some(call.request_id.clone()));
    let url = match api.storage.file_url(&owner, &path, time).await.map_err(Refused::from)? {
        Some(url) => url.to_string(),
        None => own_download_url(&api, &owner, &path, expires_at),
    };
    api.store.record(&audit).await.map_err(Refused::from)?;
    // Where the store answers it, nobody tells us of the read itself.
    api.store.used_file(&owner, &path, now).await.map_err(Refused::from)?;
    json(StatusCode::OK, &value!({ "method": "GET", "url": url, "expires_at": expires_at }))
}

fn own_download_url(api: &Api, owner: &FileOwner, path: &FilePath, expires_at: Timestamp) -> String {
    let expires = expires_at.as_second().to_string();
    let fields = ["GET", owner.tenant.as_str(), owner.user.as_str(), path.as_str(), &expires];
    let signature = api.keys.url_signature(&fields);
    let names: Vec<String> = path.as_str().split('/').map(percent_encoded).collect();
    format!(
        "/downloads/{}/{}/{}?expires={expires}&signature={signature}",
        owner.tenant,
        percent_encoded(owner.user.as_str()),
        names.join("/"),
    )
}

/// `GET /downloads/{tenant}/{user_id}/{path}`, by one of our own URLs.
pub(super) async fn download(api: Arc<Api>, call: Call) -> Answer {
    let tenant: TenantId = call.path("tenant").map_err(|_malformed| refused())?;
    let user: UserId = call.path("user_id").map_err(|_malformed| refused())?;
    let path: String = call.path("path").map_err(|_malformed| refused())?;
    let path = FilePath::parse(&path).map_err(|_malformed| refused())?;
    let expires = call.query.text("expires").unwrap_or_default();
    let signature = call.query.text("signature").unwrap_or_default();
    let fields = ["GET", tenant.as_str(), user.as_str(), path.as_str(), expires];
    let is_live = expires.parse().is_ok_and(|expires: i64| clock::now().as_second() < expires);
    if !api.keys.is_url_signature(&fields, signature) || !is_live {
        return Err(refused());
    }
    files::answer_read(&api.storage.of(&tenant, &user), &path, &call.headers).await
}
