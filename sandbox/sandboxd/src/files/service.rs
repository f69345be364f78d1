// SPDX-License-Identifier: Apache-2.0
//! `filesystem.Filesystem` on the wire.

use super::entry::Entry;
use super::watch::{self, Wish};
use super::{Files, copy, failed, tree};
use crate::connect::{self, Body, Code, Failure, Streamed};
use crate::control::unimplemented;
use crate::user;
use http::{HeaderMap, Response};
use hyper::body::Incoming;
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};
use std::path::Path;

#[derive(Deserialize)]
struct PathRequest {
    #[serde(default)]
    path: String,
}

#[derive(Deserialize)]
struct ListRequest {
    #[serde(default)]
    path: String,
    #[serde(default)]
    depth: u32,
}

#[derive(Deserialize)]
struct MoveRequest {
    #[serde(default)]
    source: String,
    #[serde(default)]
    destination: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WatchRequest {
    #[serde(default)]
    path: String,
    #[serde(default)]
    recursive: bool,
    #[serde(default)]
    include_entry: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WatcherRequest {
    watcher_id: String,
}

#[derive(Serialize)]
struct OneEntry {
    entry: Entry,
}

#[derive(Serialize)]
struct Entries {
    entries: Vec<Entry>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Watcher {
    watcher_id: String,
}

#[derive(Serialize)]
struct Events {
    events: Vec<watch::Event>,
}

#[derive(Serialize)]
struct Done {}

/// Answers one call of the service.
pub(crate) async fn answer(
    files: &Files,
    method: &str,
    headers: &HeaderMap,
    body: Incoming,
) -> Response<Body> {
    if method == "WatchDir" {
        return connect::stream(watch_folder(files, headers, body).await);
    }
    if let Err(failure) = user::of_header(headers) {
        return connect::unary::<()>(Err(failure));
    }
    match method {
        "Stat" => connect::unary(connect::in_time(headers, stat(files, body)).await),
        "ListDir" => connect::unary(connect::in_time(headers, list(files, body)).await),
        "MakeDir" => connect::unary(connect::in_time(headers, make(files, body)).await),
        "Move" => connect::unary(connect::in_time(headers, rename(files, body)).await),
        "Remove" => connect::unary(connect::in_time(headers, remove(files, body)).await),
        "CreateWatcher" => connect::unary(create_watcher(files, body).await),
        "GetWatcherEvents" => connect::unary(watcher_events(files, body).await),
        "RemoveWatcher" => connect::unary(remove_watcher(files, body).await),
        _ => connect::unary::<()>(Err(unimplemented(method))),
    }
}

async fn stat(files: &Files, body: Incoming) -> Result<OneEntry, Failure> {
    let request: PathRequest = connect::read_unary(body).await?;
    let (path, names) = (files.resolve(&request.path)?, files.names.clone());
    files
        .disk
        .run(move || {
            let entry = Entry::of(&path, &names).map_err(|error| failed(&path, &error))?;
            Ok(OneEntry { entry })
        })
        .await
}

async fn list(files: &Files, body: Incoming) -> Result<Entries, Failure> {
    let request: ListRequest = connect::read_unary(body).await?;
    let (path, names) = (files.resolve(&request.path)?, files.names.clone());
    let depth = usize::try_from(request.depth).unwrap_or(usize::MAX);
    files.disk.run(move || Ok(Entries { entries: tree::list(&path, depth, &names)? })).await
}

async fn make(files: &Files, body: Incoming) -> Result<OneEntry, Failure> {
    let request: PathRequest = connect::read_unary(body).await?;
    let (path, names) = (files.resolve(&request.path)?, files.names.clone());
    files
        .disk
        .run(move || {
            make_folder(&path)?;
            let entry = Entry::of(&path, &names).map_err(|error| failed(&path, &error))?;
            Ok(OneEntry { entry })
        })
        .await
}

fn make_folder(path: &Path) -> Result<(), Failure> {
    if path.is_dir() {
        return Err(Failure::new(Code::AlreadyExists, format!("`{}` is there already", path.display())));
    }
    if tree::kind_of(path).is_ok_and(|kind| kind.is_some()) {
        return Err(Failure::new(
            Code::InvalidArgument,
            format!("`{}` is there, and no folder", path.display()),
        ));
    }
    std::fs::create_dir_all(path).map_err(|error| failed(path, &error))
}

async fn rename(files: &Files, body: Incoming) -> Result<OneEntry, Failure> {
    let request: MoveRequest = connect::read_unary(body).await?;
    let (from, to) = (files.resolve(&request.source)?, files.resolve(&request.destination)?);
    let names = files.names.clone();
    files
        .disk
        .run(move || {
            copy::rename(&from, &to).map_err(|error| failed(&from, &error))?;
            let entry = Entry::of(&to, &names).map_err(|error| failed(&to, &error))?;
            Ok(OneEntry { entry })
        })
        .await
}

async fn remove(files: &Files, body: Incoming) -> Result<Done, Failure> {
    let request: PathRequest = connect::read_unary(body).await?;
    let path = files.resolve(&request.path)?;
    if *path == *files.home {
        return Err(Failure::new(Code::PermissionDenied, "the home folder cannot be removed"));
    }
    files.disk.run(move || tree::remove(&path).map(|()| Done {}).map_err(|error| failed(&path, &error))).await
}

async fn wish(files: &Files, request: WatchRequest) -> Result<Wish, Failure> {
    let root = files.resolve(&request.path)?;
    let at = root.clone();
    let kind = files
        .disk
        .run(move || {
            let found = rustix::fs::stat(&at).map_err(|error| failed(&at, &error.into()))?;
            Ok(FileType::from_raw_mode(found.st_mode))
        })
        .await?;
    if kind != FileType::Directory {
        return Err(Failure::new(Code::InvalidArgument, format!("`{}` is no folder", root.display())));
    }
    let names = request.include_entry.then(|| files.names.clone());
    Ok(Wish { root, is_recursive: request.recursive, names })
}

async fn watch_folder(files: &Files, headers: &HeaderMap, body: Incoming) -> Result<Streamed, Failure> {
    user::of_header(headers)?;
    let limit = connect::timeout(headers)?;
    let wish = wish(files, connect::read_envelope(body).await?).await?;
    let envelopes = watch::stream(&files.watchers, &files.tasks, wish)?;
    Ok(Streamed::new(envelopes).alive(headers, &watch::sign_of_life()).until(limit))
}

async fn create_watcher(files: &Files, body: Incoming) -> Result<Watcher, Failure> {
    let wish = wish(files, connect::read_unary(body).await?).await?;
    Ok(Watcher { watcher_id: files.watchers.keep(&files.tasks, wish)? })
}

async fn watcher_events(files: &Files, body: Incoming) -> Result<Events, Failure> {
    let request: WatcherRequest = connect::read_unary(body).await?;
    Ok(Events { events: files.watchers.take(&request.watcher_id)? })
}

async fn remove_watcher(files: &Files, body: Incoming) -> Result<Done, Failure> {
    let request: WatcherRequest = connect::read_unary(body).await?;
    files.watchers.remove(&request.watcher_id).map(|()| Done {})
}
