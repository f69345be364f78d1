// SPDX-License-Identifier: Apache-2.0
//! `GET /tree` and `POST /tree`: a folder as a tar stream, out and in. This is ours; the SDKs have no
//! such call.
//!
//! Each runs on a thread of its own, which waits for whoever is at the other end: a slow one holds up
//! nobody else.

use super::transfer::{check_user, parameter, refusal, refused};
use super::{Files, failed};
use crate::connect::{self, Body, Code, Failure};
use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use postern_common::tree::{self, Links, TreeError};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Trees on their way at one time, each with a thread.
pub(super) const TREES: usize = 8;
/// What is handed over at a time, and how many of them wait.
const PIECE_BYTES: usize = 64 << 10;
const QUEUED: usize = 2;
/// Deep enough for the deepest tree.
const STACK_BYTES: usize = 2 << 20;

/// Answers a call on `/tree`.
pub(crate) async fn answer(files: &Files, head: &Parts, body: Incoming) -> Response<Body> {
    let answered = match head.method {
        Method::GET => pack(files, head).await,
        Method::POST => unpack(files, head, body).await,
        _ => return refusal(StatusCode::METHOD_NOT_ALLOWED, "there are GET and POST"),
    };
    answered.unwrap_or_else(|failure| refused(&failure))
}

fn path(files: &Files, head: &Parts) -> Result<PathBuf, Failure> {
    check_user(head)?;
    files.resolve(&parameter(head, "path").unwrap_or_default())
}

/// Runs `act` on a thread of its own.
fn on_a_thread(places: &Arc<Semaphore>, act: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let busy =
        || Failure::new(Code::ResourceExhausted, "8 trees are on their way already, or no thread is left");
    let place = Arc::clone(places).try_acquire_owned().map_err(|_full| busy())?;
    let thread = std::thread::Builder::new().name("tree".to_owned()).stack_size(STACK_BYTES);
    let started = thread.spawn(move || {
        act();
        drop(place);
    });
    started.map(drop).map_err(|_none_left| busy())
}

async fn pack(files: &Files, head: &Parts) -> Result<Response<Body>, Failure> {
    let folder = path(files, head)?;
    let at = folder.clone();
    files
        .disk
        .run(move || match std::fs::metadata(&at) {
            Ok(found) if found.is_dir() => Ok(()),
            Ok(_) => Err(failed(&at, &io::ErrorKind::NotADirectory.into())),
            Err(error) => Err(failed(&at, &error)),
        })
        .await?;
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(QUEUED);
    on_a_thread(&files.trees, move || {
        let mut pieces = Pieces { sender, piece: BytesMut::new() };
        if let Err(error) = tree::pack(&folder, &mut pieces) {
            // It is cut off, so that its reader sees that it is not whole.
            drop(pieces.sender.blocking_send(Err(io::Error::other(error.to_string()))));
        }
    })?;
    let frames = futures_util::stream::unfold(receiver, async |mut pieces| {
        let piece = pieces.recv().await?;
        Some((piece.map(Frame::data), pieces))
    });
    Ok(connect::response(StatusCode::OK, "application/x-tar", StreamBody::new(frames).boxed_unsync()))
}

/// Collects what is packed and hands it over; waits while nobody takes it.
struct Pieces {
    sender: mpsc::Sender<io::Result<Bytes>>,
    piece: BytesMut,
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
        let piece = self.piece.split().freeze();
        self.sender.blocking_send(Ok(piece)).map_err(|_left| io::ErrorKind::BrokenPipe.into())
    }
}

async fn unpack(files: &Files, head: &Parts, mut body: Incoming) -> Result<Response<Body>, Failure> {
    let folder = path(files, head)?;
    let (sender, receiver) = mpsc::channel::<Bytes>(QUEUED);
    let (done, unpacked) = oneshot::channel();
    let at = folder.clone();
    on_a_thread(&files.trees, move || {
        let mut archive = Arriving { receiver, piece: Bytes::new() };
        // The agent may put links wherever it likes anyway.
        let result = tree::unpack(&mut archive, &at, Links::All);
        // What comes after the archive's end is nobody's, but is taken, so that its sender ends well.
        if result.is_ok() {
            drop(io::copy(&mut archive, &mut io::sink()));
        }
        drop(done.send(result));
    })?;
    let mut is_whole = true;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            is_whole = false;
            break;
        };
        if let Ok(bytes) = frame.into_data()
            && sender.send(bytes).await.is_err()
        {
            break;
        }
    }
    drop(sender);
    let unpacked = unpacked.await.map_err(|_ended| Failure::new(Code::Internal, "the thread ended"))?;
    let carried = unpacked.map_err(|error| match error {
        TreeError::Io { path, source } => failed(&folder.join(path), &source),
        error => Failure::new(Code::InvalidArgument, error.to_string()),
    })?;
    if !is_whole {
        return Err(Failure::new(Code::InvalidArgument, "the body broke off"));
    }
    let json = serde_json::json!({ "entries": carried.entries, "bytes": carried.bytes });
    Ok(connect::json_response(StatusCode::OK, json.to_string().into_bytes()))
}

/// An archive as it arrives.
struct Arriving {
    receiver: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.piece.len());
        let piece = self.piece.split_to(length);
        buffer.get_mut(..length).unwrap_or_default().copy_from_slice(&piece);
        Ok(length)
    }
}
