// SPDX-License-Identifier: Apache-2.0
//! Pictures of sandboxes' memory on this machine: where they lie, and what they depend on.

use super::{LocalRuntime, Method, RuntimeError};
use crate::keys::hex;
use aws_lc_rs::digest::{SHA256, digest};
use postern_common::id::SandboxId;
use postern_shim::folder::RunFolder;
use postern_shim::memory;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The shim gives gVisor a minute.
const PICTURE_TIME: Duration = Duration::from_secs(65);
/// What tells that the software of this machine was changed: a picture holds no copy of files of `/usr`
/// that are mapped into memory, and goes on with those that it finds.
const SOFTWARE: [&str; 6] =
    ["/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib64", "/var/lib/dpkg/status", "/usr/lib/sysimage/rpm"];

/// A digest of all that a picture depends on.
pub(super) async fn fingerprint(runtime: &LocalRuntime, image: Option<&str>) -> io::Result<String> {
    let root = runtime.image(image).await.map_err(io::Error::other)?;
    let found = runtime.settings.search_path.iter().map(|folder| folder.join("runsc"));
    // Debian's libraries.
    let libraries = PathBuf::from(format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH));
    let stamps = runtime.settings.runsc.iter().cloned().chain(found).chain(match root {
        Some(image) => vec![image],
        None => SOFTWARE.iter().map(PathBuf::from).chain([libraries]).collect(),
    });
    let (stamps, process_1): (Vec<_>, _) = (stamps.collect(), runtime.sandboxd.clone());
    let read = tokio::task::spawn_blocking(move || read(&process_1, &stamps)).await;
    read.unwrap_or_else(|error| Err(io::Error::other(error)))
}

fn read(process_1: &Path, stamps: &[PathBuf]) -> io::Result<String> {
    // The copy of process 1 lies where nothing outlives a restart of the machine: its content tells.
    let process_1 = hex(digest(&SHA256, &fs::read(process_1)?).as_ref());
    let mut text = format!("postern picture v1\n{process_1}");
    for path in stamps {
        stamp(&mut text, path);
    }
    // A picture made by one kind of processor does not go on with another.
    let processor = fs::read_to_string("/proc/cpuinfo")?;
    let kinds = ["model name", "flags", "Features", "CPU part"];
    for line in processor.lines().filter(|line| kinds.iter().any(|kind| line.starts_with(kind))).take(2) {
        text.push_str(line);
    }
    Ok(hex(digest(&SHA256, text.as_bytes()).as_ref()))
}

fn stamp(text: &mut String, path: &Path) {
    if let Ok(about) = fs::metadata(path) {
        // A string takes whatever is written.
        let _ = write!(
            text,
            "\n{} {} {} {} {}",
            path.display(),
            about.ino(),
            about.size(),
            about.mtime(),
            about.mtime_nsec()
        )
        .is_ok();
    }
}

/// Has the shim picture a sandbox's memory.
pub(super) async fn picture(runtime: &LocalRuntime, sandbox: &SandboxId) -> Result<PathBuf, RuntimeError> {
    let path = "http://shim/shim/picture";
    runtime.ask_within(PICTURE_TIME, sandbox, Method::POST, path).await?;
    Ok(runtime.folder(sandbox).memory())
}

/// An empty place for a picture of a sandbox that does not run.
pub(super) async fn place(
    runtime: &LocalRuntime,
    sandbox: &SandboxId,
    memory_bytes: u64,
) -> Result<PathBuf, RuntimeError> {
    runtime.prepare(sandbox)?;
    let folder = runtime.folder(sandbox);
    let at = folder.memory();
    let make = move |folder: &RunFolder| memory::make(folder, memory_bytes);
    spawned(sandbox, folder, "make a place for the picture of its memory", make).await?;
    Ok(at)
}

/// Removes a picture: by the shim where there is one, which bounds the memory as before.
pub(super) async fn forget(runtime: &LocalRuntime, sandbox: &SandboxId) -> Result<(), RuntimeError> {
    if runtime.ask(sandbox, Method::DELETE, "http://shim/shim/picture").await.is_ok() {
        return Ok(());
    }
    let folder = runtime.folder(sandbox);
    spawned(sandbox, folder, "remove the picture of its memory", memory::forget).await
}

async fn spawned(
    sandbox: &SandboxId,
    folder: RunFolder,
    what: &'static str,
    act: impl FnOnce(&RunFolder) -> io::Result<()> + Send + 'static,
) -> Result<(), RuntimeError> {
    let acted = tokio::task::spawn_blocking(move || act(&folder)).await;
    let acted = acted.unwrap_or_else(|error| Err(io::Error::other(error)));
    acted.map_err(|source| RuntimeError::Machine { sandbox: sandbox.clone(), what, source })
}
