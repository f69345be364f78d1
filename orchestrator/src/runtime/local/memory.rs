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
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The shim gives gVisor a minute.
const PICTURE_TIME: Duration = Duration::from_secs(65);
/// What tells that the software of this machine was changed: a picture holds no copy of files of `/usr`
/// that are mapped into memory, and goes on with those that it finds.
const SOFTWARE: [&str; 6] =
    ["/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib64", "/var/lib/dpkg/status", "/usr/lib/sysimage/rpm"];

/// The digest of the copy of process 1, and the stamp of the file that it is of: it is replaced, never written into.
#[derive(Debug, Clone, Default)]
pub(super) struct ProcessOne(Arc<Mutex<Option<(String, String)>>>);

impl ProcessOne {
    /// The digest of this file's content, which is read if it is another than last time.
    fn digest(&self, path: &Path) -> io::Result<String> {
        let about = fs::metadata(path)?;
        let times = [about.mtime(), about.mtime_nsec(), about.ctime(), about.ctime_nsec()];
        let stamp = format!("{} {} {} {times:?}", about.dev(), about.ino(), about.size());
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, content)) = known.filter(|(of, _)| *of == stamp) {
            return Ok(content);
        }
        let content = hex(digest(&SHA256, &fs::read(path)?).as_ref());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((stamp, content.clone()));
        Ok(content)
    }
}

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
    let (stamps, sandboxd): (Vec<_>, _) = (stamps.collect(), runtime.sandboxd.clone());
    let process_1 = runtime.process_1.clone();
    let read = tokio::task::spawn_blocking(move || read((&process_1, &sandboxd), &stamps)).await;
    read.unwrap_or_else(|error| Err(io::Error::other(error)))
}

fn read((process_1, sandboxd): (&ProcessOne, &Path), stamps: &[PathBuf]) -> io::Result<String> {
    // The copy of process 1 lies where nothing outlives a restart of the machine: its content tells.
    let process_1 = process_1.digest(sandboxd)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_1_is_known_by_its_content_whenever_it_is_replaced() {
        let here = tempfile::tempdir().expect("a folder");
        let at = here.path().join("sandboxd");
        let (known, put) = (ProcessOne::default(), |content: &str| {
            let draft = here.path().join("draft");
            fs::write(&draft, content).expect("writes");
            // Of the same length and time: it is another file all the same.
            let time = std::time::UNIX_EPOCH + Duration::from_secs(1);
            fs::File::options().write(true).open(&draft).expect("opens").set_modified(time).expect("is set");
            fs::rename(&draft, &at).expect("is replaced");
        });
        let of = |content: &str| hex(digest(&SHA256, content.as_bytes()).as_ref());
        for content in ["one", "two", "one"] {
            put(content);
            for _ in 0..2 {
                assert_eq!(known.digest(&at).expect("reads"), of(content));
            }
        }
        fs::remove_file(&at).expect("removes");
        assert!(known.digest(&at).is_err(), "what is gone is not known");
    }
}
