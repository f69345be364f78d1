// SPDX-License-Identifier: Apache-2.0
//! `postern files`: a user's files, without a sandbox. Large ones go in parts, so that an upload
//! that broke off goes on where it was.

use super::Server;
use crate::arguments::Files;
use crate::client::segment;
use crate::failure::Failure;
use crate::output::table;
use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};

/// What is sent in one request; what is longer goes in parts.
const WHOLE_BYTES: u64 = 8 << 20;
/// How often progress is told.
const TOLD_BYTES: u64 = 64 << 20;

/// Runs one of the commands.
pub(super) async fn run(server: &Server, wanted: Files) -> Result<(), Failure> {
    match wanted {
        Files::Ls { user, prefix } => list(server, &user, prefix.as_deref()).await,
        Files::Get { user, path, to } => get(server, &user, &path, to).await,
        Files::Put { user, from, path, resume } => {
            let path = match path {
                Some(path) => path,
                None => name(&from)?,
            };
            put(server, &user, &from, &path, resume).await
        }
        Files::Rm { user, path } => {
            server.delete(&address(&user, &path)).await?;
            let removed = json!({ "user_id": user, "path": path, "removed": true });
            server.output.done(&removed, || format!("{path} is removed"));
            Ok(())
        }
        Files::Url { user, path, expires_in } => {
            let mut body = json!({ "path": path });
            if let (Some(time), Some(body)) = (expires_in, body.as_object_mut()) {
                body.insert("expires_in".to_owned(), time.into());
            }
            let told = server.post(&format!("/users/{}/downloads", segment(&user)), &body).await?;
            let url = server.client.whole_url(text(&told, "url")?)?;
            server
                .output
                .answer(&json!({ "url": url.as_str(), "expires_at": told.get("expires_at") }), || {
                    url.to_string()
                });
            Ok(())
        }
    }
}

/// The path of a file in the API; its slashes are its own.
fn address(user: &str, path: &str) -> String {
    let names: Vec<String> = path.split('/').map(segment).collect();
    format!("/users/{}/files/{}", segment(user), names.join("/"))
}

fn name(path: &Path) -> Result<String, Failure> {
    let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    name.ok_or_else(|| Failure::Usage("say under which path the file is to be kept".to_owned()))
}

fn text<'a>(value: &'a Value, field: &str) -> Result<&'a str, Failure> {
    Ok(value.get(field).and_then(Value::as_str).with_context(|| format!("the answer holds no `{field}`"))?)
}

fn number(value: &Value, field: &str) -> u64 {
    value.get(field).and_then(Value::as_u64).unwrap_or_default()
}

fn items<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}

async fn list(server: &Server, user: &str, prefix: Option<&str>) -> Result<(), Failure> {
    let prefix = prefix.map(|prefix| format!("&prefix={}", segment(prefix))).unwrap_or_default();
    let (mut rows, mut files, mut after) = (Vec::new(), Vec::new(), String::new());
    loop {
        let page = server.get(&format!("/users/{}/files?limit=1000{prefix}{after}", segment(user))).await?;
        for file in items(&page, "files") {
            let size = number(file, "size");
            let cells = [super::cell(file, "path"), shown_size(size), super::cell(file, "modified")];
            rows.push(cells.to_vec());
            files.push(file.clone());
        }
        match page.get("next").and_then(Value::as_str) {
            Some(next) => after = format!("&after={}", segment(next)),
            None => break,
        }
    }
    server.output.answer(&json!({ "files": files }), || table(&["PATH", "SIZE", "MODIFIED"], &rows));
    Ok(())
}

/// Brings a file here: beside its place first, so that it appears whole.
async fn get(server: &Server, user: &str, path: &str, to: Option<PathBuf>) -> Result<(), Failure> {
    let to = match to {
        Some(to) if to.as_os_str() == "-" => return print(server, user, path).await,
        Some(to) => to,
        None => PathBuf::from(path.rsplit('/').next().unwrap_or(path)),
    };
    let response = server.client.get_content(&server.path(&address(user, path)), &[]).await?;
    let size = response.headers().get("content-length").and_then(|value| value.to_str().ok()?.parse().ok());
    let draft = draft(&to)?;
    let mut file =
        File::create(&draft).await.with_context(|| format!("could not write {}", draft.display()))?;
    let mut progress = Progress::new(server, size);
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.context("the answer broke off; what came lies beside as a draft")?;
        if let Ok(bytes) = frame.into_data() {
            file.write_all(&bytes).await?;
            progress.add(u64::try_from(bytes.len()).unwrap_or(0));
        }
    }
    file.sync_all().await?;
    tokio::fs::rename(&draft, &to).await.with_context(|| format!("could not write {}", to.display()))?;
    server.output.note(&format!("{path} is in {}", to.display()));
    Ok(())
}

fn draft(to: &Path) -> Result<PathBuf, Failure> {
    Ok(to.with_file_name(format!(".{}.part", name(to)?)))
}

async fn print(server: &Server, user: &str, path: &str) -> Result<(), Failure> {
    let response = server.client.get_content(&server.path(&address(user, path)), &[]).await?;
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        if let Ok(bytes) = frame.context("the answer broke off")?.into_data() {
            server.output.guest(crate::output::Stream::Out, &bytes);
        }
    }
    Ok(())
}

async fn put(
    server: &Server,
    user: &str,
    from: &Path,
    path: &str,
    resume: Option<String>,
) -> Result<(), Failure> {
    let shown = from.display();
    let mut file = File::open(from).await.with_context(|| format!("could not read {shown}"))?;
    let size = file.metadata().await?.len();
    if size <= WHOLE_BYTES && resume.is_none() {
        let mut content = Vec::new();
        file.take(WHOLE_BYTES + 1).read_to_end(&mut content).await?;
        let answer =
            server.client.put_content(&server.path(&address(user, path)), &[], content.into()).await?;
        server.output.answer(&answer.body, || format!("{path} is kept ({})", shown_size(size)));
        return Ok(());
    }
    let uploads = format!("/users/{}/uploads", segment(user));
    let upload = match resume {
        Some(id) => server.get(&format!("{uploads}/{}", segment(&id))).await?,
        None => server.post(&uploads, &json!({ "path": path, "size": size })).await?,
    };
    let id = text(&upload, "upload_id")?;
    if number(&upload, "size") != size {
        return Err(Failure::Usage(format!("upload {id} is of another size than {shown}")));
    }
    server.output.note(&format!("upload {id}; if it breaks off, go on with --resume {id}"));
    let mut progress = Progress::new(server, Some(size));
    for part in items(&upload, "parts") {
        let bytes = number(part, "size");
        if part.get("arrived") != Some(&json!(true)) {
            let begin = number(part, "number") * number(&upload, "part_size");
            let content = read_part(&mut file, begin, bytes).await?;
            server
                .client
                .put_signed(text(part, "url")?, part.get("headers").unwrap_or(&Value::Null), content)
                .await?;
        }
        progress.add(bytes);
    }
    let done = server.post(&format!("{uploads}/{id}/complete"), &json!({})).await?;
    server.output.answer(&done, || format!("{path} is kept ({})", shown_size(size)));
    Ok(())
}

async fn read_part(file: &mut File, begin: u64, size: u64) -> Result<Bytes, Failure> {
    file.seek(std::io::SeekFrom::Start(begin)).await?;
    let mut content = vec![0; usize::try_from(size).context("the part is too large for this machine")?];
    file.read_exact(&mut content).await.context("the file was cut meanwhile")?;
    Ok(content.into())
}

/// Tells now and then how much has gone.
struct Progress<'a> {
    server: &'a Server,
    size: Option<u64>,
    gone: u64,
    told: u64,
}

impl<'a> Progress<'a> {
    const fn new(server: &'a Server, size: Option<u64>) -> Self {
        Self { server, size, gone: 0, told: 0 }
    }

    fn add(&mut self, bytes: u64) {
        self.gone += bytes;
        if self.gone - self.told >= TOLD_BYTES {
            self.told = self.gone;
            let of = self.size.map(|size| format!(" of {}", shown_size(size))).unwrap_or_default();
            self.server.output.note(&format!("{}{of}", shown_size(self.gone)));
        }
    }
}

/// A size for people.
fn shown_size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut whole, mut rest, mut unit) = (bytes, 0, 0);
    while whole >= 1024 && unit + 1 < units.len() {
        (rest, whole, unit) = (whole % 1024, whole / 1024, unit + 1);
    }
    let name = units.get(unit).copied().unwrap_or_default();
    if unit == 0 { format!("{whole} {name}") } else { format!("{whole}.{} {name}", rest * 10 / 1024) }
}

#[cfg(test)]
mod tests;
