// SPDX-License-Identifier: Apache-2.0
//! The root file system of a sandbox: the host's `/usr`, read-only, on a small root of our own.
//!
//! Nothing of the host's `/etc` is shown. Ours has the files that a C library wants and no more:
//! no resolver (there is no DNS), no certificates (nothing inside speaks TLS to anybody), no
//! linker cache (the default folders need none). Debian's `/etc/alternatives` is made again, as
//! links into `/usr` only, because `awk` and others are reached through it.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Where things are inside.
pub mod inside {
    /// The folder of the gateway's socket.
    pub const GATEWAY: &str = "/run/postern";
    /// Process 1.
    pub const SANDBOXD: &str = "/opt/postern/sandboxd";
    /// The user's files and the scratch folder.
    pub const DATA: &str = "/data";
    /// The user's files.
    pub const USER: &str = "/data/user";
    /// What dies with the sandbox.
    pub const SCRATCH: &str = "/data/scratch";
    /// The agent's home.
    pub const HOME: &str = "/home/user";
}

/// Folders of `/usr` that hold what the machine's owner put there, and kernel sources.
pub const MASKED: [&str; 2] = ["/usr/local", "/usr/src"];

const FOLDERS: [&str; 11] =
    ["usr", "etc", "proc", "dev", "tmp", "run/postern", "data", "home/user", "opt/postern", "sys", "var/tmp"];
/// On a merged-`/usr` system these are links.
const LINKS: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// Takes the place of `etc/passwd` where the agent has id 0.
pub const PASSWD_OF_ZERO: &str = "etc/passwd.zero";

const FILES: [(&str, &str); 8] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/:/usr/sbin/nologin\nuser:x:1000:1000:user:/home/user:/bin/bash\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    ),
    (
        PASSWD_OF_ZERO,
        "user:x:0:0:user:/home/user:/bin/bash\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    ),
    ("etc/group", "root:x:0:\nuser:x:1000:\nnogroup:x:65534:\n"),
    ("etc/hosts", "127.0.0.1 localhost sandbox\n::1 localhost sandbox\n"),
    ("etc/hostname", "sandbox\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
    ("etc/resolv.conf", "# There is no DNS here: call a backend through GATEWAY_URL.\n"),
    ("opt/postern/sandboxd", ""),
];

/// The skeleton could not be made.
#[derive(Debug, thiserror::Error)]
#[error("could not make `{}` for the root of sandboxes; is the disk full?", path.display())]
pub struct SkeletonError {
    path: PathBuf,
    source: io::Error,
}

/// Makes the root that all sandboxes of an installation share, if it is not there yet.
///
/// # Errors
/// [`SkeletonError`]; what was made so far is of no harm and is made again the next time.
pub fn make_skeleton(at: &Path) -> Result<(), SkeletonError> {
    if at.is_dir() {
        return Ok(());
    }
    let draft = at.with_extension("draft");
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| SkeletonError { path, source }
    };
    for name in FOLDERS {
        let path = draft.join(name);
        fs::create_dir_all(&path).map_err(failed(&path))?;
    }
    for name in LINKS {
        let (host, path) = (Path::new("/").join(name), draft.join(name));
        if host.exists() {
            link(&Path::new("usr").join(name), &path).map_err(failed(&path))?;
        }
    }
    for (name, text) in FILES {
        let path = draft.join(name);
        fs::write(&path, text).map_err(failed(&path))?;
    }
    alternatives(&draft.join("etc/alternatives")).map_err(failed(&draft))?;
    link(Path::new("/usr/share/zoneinfo/Etc/UTC"), &draft.join("etc/localtime")).map_err(failed(&draft))?;
    link(Path::new("/proc/self/mounts"), &draft.join("etc/mtab")).map_err(failed(&draft))?;
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).map_err(failed(&draft))?;
    match fs::rename(&draft, at) {
        Err(_) if at.is_dir() => Ok(()),
        renamed => renamed.map_err(failed(at)),
    }
}

fn link(target: &Path, at: &Path) -> io::Result<()> {
    match symlink(target, at) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn alternatives(at: &Path) -> io::Result<()> {
    fs::create_dir_all(at)?;
    let Ok(entries) = fs::read_dir("/etc/alternatives") else { return Ok(()) };
    for entry in entries.flatten() {
        match fs::read_link(entry.path()) {
            Ok(target) if target.starts_with("/usr") => link(&target, &at.join(entry.file_name()))?,
            _ => {}
        }
    }
    Ok(())
}
