// SPDX-License-Identifier: Apache-2.0
//! Starting a shim and waiting until its sandbox serves.

use super::LocalRuntime;
use super::told::Told;
use crate::runtime::{Running, RuntimeError};
use postern_common::id::SandboxId;
use postern_shim::folder::RunFolder;
use postern_shim::spec::{Enforced, IsolatedBy, Limits, Spec, guest_uid};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

/// The shim gives its sandbox a time; this is for a shim that hangs itself.
const SHIM_MARGIN: Duration = Duration::from_secs(5);
/// What is kept of a shim's complaint.
const COMPLAINT_BYTES: u64 = 8 << 10;
/// What is read of what it tells of itself.
const STATUS_BYTES: u64 = 64 << 10;

/// Starts a sandbox of exactly this isolation, on this image if one is named, in which these limits
/// hold, anew or from the picture of its memory that lies in its folder. If that fails, nothing of it
/// runs; its folders are left to `destroy`.
pub(super) async fn start(
    runtime: &LocalRuntime,
    sandbox: &SandboxId,
    (isolation, image): (IsolatedBy, Option<PathBuf>),
    (limits, must_hold): (Limits, Enforced),
    is_restored: bool,
) -> Result<Running, RuntimeError> {
    let failed = |why: String| RuntimeError::Start { sandbox: sandbox.clone(), why };
    runtime.prepare(sandbox)?;
    let spec = Spec {
        installation: runtime.settings.installation.clone(),
        sandbox: sandbox.clone(),
        isolation,
        is_image: image.is_some(),
        skeleton: image.unwrap_or_else(|| runtime.skeleton.clone()),
        sandboxd: runtime.sandboxd.clone(),
        slot: runtime.slot(sandbox),
        guest: runtime.is_root.then(|| guest_uid(sandbox)),
        limits,
        must_hold,
        is_restored,
    };
    let folder = runtime.folder(sandbox);
    // How it ended before, if it did, is over.
    drop(fs::remove_file(folder.exit()));
    let mut shim = write(&spec, &folder)
        .and_then(|()| spawn(runtime, &folder))
        .map_err(|error| failed(error.to_string()))?;
    let ready = tokio::time::timeout(spec.start_time() + SHIM_MARGIN, until_ready(&mut shim)).await;
    let ready = ready.unwrap_or_else(|_late| Err("its shim did not answer in time".to_owned()));
    let told = match ready {
        Ok(told) => told,
        Err(why) => {
            // Its sandbox dies with it.
            let _ = shim.kill().await.is_ok();
            return Err(failed(why));
        }
    };
    // Somebody must reap it; when we end first, its next parent does.
    runtime.tasks.spawn(async move |stop| drop(stop.run_until_cancelled(shim.wait()).await));
    Ok(told.running())
}

fn write(spec: &Spec, folder: &RunFolder) -> io::Result<()> {
    fs::write(folder.spec(), serde_json::to_vec(spec)?)
}

/// In a process group of its own, so that Ctrl-C in our terminal does not reach it.
fn spawn(runtime: &LocalRuntime, folder: &RunFolder) -> io::Result<Child> {
    Command::new(&runtime.settings.shim)
        .arg("run")
        .arg(folder.path())
        .env_clear()
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
}

/// Reads what a good shim tells of its sandbox; else what it complains about.
async fn until_ready(shim: &mut Child) -> Result<Told, String> {
    let line = read(shim.stdout.take(), STATUS_BYTES).await;
    if let Ok(told) = serde_json::from_slice(&line) {
        return Ok(told);
    }
    let complaint = read(shim.stderr.take(), COMPLAINT_BYTES).await;
    Err(String::from_utf8_lossy(&complaint).trim().to_owned())
}

async fn read(stream: Option<impl AsyncRead + Unpin>, at_most: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        // What came before an error is what there is.
        let _ = stream.take(at_most).read_to_end(&mut bytes).await.is_ok();
    }
    bytes
}
