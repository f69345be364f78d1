// SPDX-License-Identifier: Apache-2.0
//! `postern sandbox cp`: files and folders into a sandbox and out of it.
//!
//! What comes out is the agent's: it is written below the place that was named and nowhere else,
//! whatever its archive says, and links that would lead elsewhere are refused.

use super::super::Server;
use super::progress::Progress;
use crate::client::{Body, inside, segment};
use crate::failure::Failure;
use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use postern_common::tree::{self, Links};
use serde_json::json;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::mpsc;

/// What is carried at a time, and how many of them wait.
const PIECE_BYTES: usize = 64 << 10;
const QUEUED: usize = 4;

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// A path in a sandbox.
    Sandbox { id: String, path: String },
    /// A path here.
    Here(PathBuf),
    /// Standard input or output.
    Pipe,
}

impl Place {
    /// `SANDBOX:PATH`, a path of this machine, or `-`.
    fn read(text: &str) -> Self {
        if text == "-" {
            return Self::Pipe;
        }
        match text.split_once(':') {
            Some((id, path)) if id.starts_with("sandbox-") => {
                let path = if path.is_empty() { "~".to_owned() } else { path.to_owned() };
                Self::Sandbox { id: id.to_owned(), path }
            }
            _ => Self::Here(text.into()),
        }
    }
}

/// Copies.
pub(super) async fn copy(server: &Server, from: &str, to: &str) -> Result<(), Failure> {
    let progress = Arc::new(Progress::new());
    let (source, target) = (Place::read(from), Place::read(to));
    // Standard output is then the copy's own.
    let is_piped = target == Place::Pipe;
    let carried = match (source, target) {
        (Place::Sandbox { id, path }, Place::Here(to)) => out(server, (&id, &path), to, &progress).await,
        (Place::Sandbox { id, path }, Place::Pipe) => out_to_pipe(server, (&id, &path), &progress).await,
        (Place::Here(from), Place::Sandbox { id, path }) => into(server, from, (&id, &path), &progress).await,
        (Place::Pipe, Place::Sandbox { id, path }) => {
            let body = sent(Box::new(io::stdin()), &progress);
            put(server, "files", (&id, &path), body).await
        }
        _ => {
            let text = "one of both is `SANDBOX:PATH`, such as sandbox-abcdefghijkl:/data/user/report.pdf";
            return Err(Failure::Usage(text.to_owned()));
        }
    };
    progress.end();
    carried?;
    let told = || format!("copied {}", progress.text());
    if is_piped {
        server.output.note(&told());
    } else {
        server.output.done(&json!({ "from": from, "to": to, "bytes": progress.carried() }), told);
    }
    Ok(())
}

fn call(server: &Server, what: &str, (id, path): (&str, &str)) -> String {
    // `/~` is a folder of that name; `~` is home.
    let rest = if path.starts_with("/~") { format!("%2F{}", inside(path)) } else { inside(path) };
    let rest = if rest.is_empty() { "%2F".to_owned() } else { rest };
    server.path(&format!("/sandbox/{}/{what}/{}", segment(id), rest.replace("%7E", "~")))
}

/// What is at a path inside: `file`, `folder`, …; `None` if nothing.
async fn kind(server: &Server, at: (&str, &str)) -> Result<Option<String>, Failure> {
    let found = server.client.call(Method::GET, &call(server, "entries", at), None).await;
    match found {
        Ok(found) => Ok(found.body.get("kind").and_then(serde_json::Value::as_str).map(str::to_owned)),
        Err(Failure::Refused(problem)) if problem.status == 404 => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// The last name of a path that a person wrote.
fn last_name(path: &str) -> Result<String, Failure> {
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    match name {
        "" | "." | ".." | "~" => {
            Err(Failure::Usage(format!("`{path}` has no name; say what the copy is to be called")))
        }
        name => Ok(name.to_owned()),
    }
}

async fn out(
    server: &Server,
    at: (&str, &str),
    to: PathBuf,
    progress: &Arc<Progress>,
) -> Result<(), Failure> {
    let is_folder = match kind(server, at).await?.as_deref() {
        Some("folder") => true,
        Some(_) => false,
        None => return Err(anyhow!("there is no `{}` in the sandbox", at.1).into()),
    };
    let to = if to.is_dir() { to.join(last_name(at.1)?) } else { to };
    let what = if is_folder { "trees" } else { "files" };
    let mut response = server.client.download(&call(server, what, at)).await?;
    progress.expect(response.headers().get(http::header::CONTENT_LENGTH));
    let (sender, receiver) = mpsc::channel(QUEUED);
    let arriving = Arriving { receiver, piece: Bytes::new(), progress: Arc::clone(progress) };
    let written = tokio::task::spawn_blocking(move || {
        if is_folder { unpack(arriving, &to) } else { write_file(arriving, &to) }
    });
    let carried = carry(response.body_mut(), sender).await;
    let written = written.await.context("a thread of ours")?;
    // What the writer says is nearer to the cause, unless the stream was cut.
    carried.and(written)
}

fn unpack(mut from: Arriving, to: &Path) -> Result<(), Failure> {
    tree::unpack(&mut from, to, Links::Inside)
        .with_context(|| format!("could not unpack into `{}`", to.display()))?;
    io::copy(&mut from, &mut io::sink())?;
    Ok(())
}

/// Writes beside its place, then puts it there: what is cut off is never taken for the whole.
fn write_file(mut from: Arriving, to: &Path) -> Result<(), Failure> {
    let failed = || format!("could not write `{}`", to.display());
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut draft = tempfile::NamedTempFile::new_in(folder).with_context(failed)?;
    io::copy(&mut from, draft.as_file_mut()).with_context(failed)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    draft.as_file().set_permissions(mode).with_context(failed)?;
    draft.persist(to).map_err(|error| error.error).with_context(failed)?;
    Ok(())
}

async fn out_to_pipe(server: &Server, at: (&str, &str), progress: &Arc<Progress>) -> Result<(), Failure> {
    let what = if kind(server, at).await?.as_deref() == Some("folder") { "trees" } else { "files" };
    let mut response = server.client.download(&call(server, what, at)).await?;
    while let Some(frame) = response.body_mut().frame().await {
        let frame = frame.map_err(|error| anyhow!("the copy broke off: {error}"))?;
        if let Ok(bytes) = frame.into_data() {
            progress.add(bytes.len());
            io::stdout().lock().write_all(&bytes)?;
        }
    }
    Ok(io::stdout().lock().flush()?)
}

async fn into(
    server: &Server,
    from: PathBuf,
    at: (&str, &str),
    progress: &Arc<Progress>,
) -> Result<(), Failure> {
    let found = std::fs::metadata(&from).with_context(|| format!("could not read `{}`", from.display()))?;
    let is_folder_there = at.1.ends_with('/') || kind(server, at).await?.as_deref() == Some("folder");
    let to = if is_folder_there {
        let name = std::path::absolute(&from)?.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.context("the source has no name; name the destination")?;
        format!("{}/{name}", at.1.trim_end_matches('/'))
    } else {
        at.1.to_owned()
    };
    if found.is_dir() {
        let body = packed(from, progress);
        return put(server, "trees", (at.0, &to), body).await;
    }
    progress.expect_length(found.len());
    let file = File::open(&from).with_context(|| format!("could not read `{}`", from.display()))?;
    put(server, "files", (at.0, &to), sent(Box::new(file), progress)).await
}

async fn put(server: &Server, what: &str, at: (&str, &str), body: Body) -> Result<(), Failure> {
    server.client.upload(Method::PUT, &call(server, what, at), body).await.map(drop)
}

/// Takes a body in, for a thread that writes.
async fn carry(body: &mut Incoming, to: mpsc::Sender<io::Result<Bytes>>) -> Result<(), Failure> {
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => {
                if let Ok(bytes) = frame.into_data()
                    && to.send(Ok(bytes)).await.is_err()
                {
                    return Ok(());
                }
            }
            Err(error) => {
                drop(to.send(Err(io::ErrorKind::UnexpectedEof.into())).await);
                return Err(anyhow!("the copy broke off: {error}").into());
            }
        }
    }
    Ok(())
}

/// Bytes as they arrive, for a thread that writes.
struct Arriving {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
    progress: Arc<Progress>,
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.piece.len());
        self.progress.add(length);
        buffer.get_mut(..length).unwrap_or_default().copy_from_slice(&self.piece.split_to(length));
        Ok(length)
    }
}

/// What a reader gives, as a body; a thread reads it.
fn sent(mut from: Box<dyn Read + Send>, progress: &Arc<Progress>) -> Body {
    produced(Arc::clone(progress), move |mut to| {
        io::copy(&mut from, &mut to)?;
        to.flush()
    })
}

/// A folder as a body.
fn packed(folder: PathBuf, progress: &Arc<Progress>) -> Body {
    produced(Arc::clone(progress), move |to| {
        tree::pack(&folder, to).map(drop).map_err(|error| io::Error::other(error.to_string()))
    })
}

fn produced(
    progress: Arc<Progress>,
    produce: impl FnOnce(Pieces) -> io::Result<()> + Send + 'static,
) -> Body {
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(QUEUED);
    let run = move || {
        let pieces = Pieces { sender: sender.clone(), piece: Vec::new(), progress };
        if let Err(error) = produce(pieces) {
            drop(sender.blocking_send(Err(error)));
        }
    };
    drop(std::thread::spawn(run));
    let frames = futures_util::stream::unfold(receiver, async |mut receiver| {
        let bytes = receiver.recv().await?;
        Some((bytes.map(Frame::data), receiver))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// Collects what a thread writes and hands it over.
struct Pieces {
    sender: mpsc::Sender<io::Result<Bytes>>,
    piece: Vec<u8>,
    progress: Arc<Progress>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.progress.add(self.piece.len());
        let piece = std::mem::take(&mut self.piece);
        self.sender.blocking_send(Ok(piece.into())).map_err(|_left| io::ErrorKind::BrokenPipe.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_sandboxs_only_if_it_says_so() {
        let inside = |path: &str| Place::Sandbox { id: "sandbox-a".into(), path: path.into() };
        assert_eq!(Place::read("sandbox-a:/x:y"), inside("/x:y"));
        assert_eq!(Place::read("sandbox-a:"), inside("~"));
        assert_eq!(Place::read("./sandbox-a:/x"), Place::Here("./sandbox-a:/x".into()));
        assert_eq!(Place::read("C:\\x"), Place::Here("C:\\x".into()));
        assert_eq!(Place::read("-"), Place::Pipe);
    }

    #[test]
    fn the_name_of_a_copy_is_one_that_a_person_wrote() {
        assert_eq!(last_name("/data/user/report.pdf").expect("a name"), "report.pdf");
        assert_eq!(last_name("/data/user/").expect("a name"), "user");
        for none in ["/", "~", "..", "/data/.."] {
            assert!(last_name(none).is_err(), "{none}");
        }
    }
}
