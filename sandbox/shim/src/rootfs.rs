// SPDX-License-Identifier: Apache-2.0
//! The root file system of a sandbox: the host's `/usr`, read-only, on a small root of our own; or
//! an image, with the few things put into it that every sandbox has.
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

/// Folders that a root must have for what is mounted there.
pub const MOUNT_POINTS: [&str; 11] =
    ["usr", "etc", "proc", "dev", "tmp", "run/postern", "data", "home/user", "opt/postern", "sys", "var/tmp"];
/// On a merged-`/usr` system these are links.
const LINKS: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// Takes the place of `etc/passwd` where the agent has id 0.
pub const PASSWD_OF_ZERO: &str = "etc/passwd.zero";

/// Files that a root has whatever else is in it: no name of this machine, no resolver, and the place
/// of process 1.
pub const FURNITURE: [(&str, &str); 4] = [
    ("etc/hosts", "127.0.0.1 localhost sandbox\n::1 localhost sandbox\n"),
    ("etc/hostname", "sandbox\n"),
    ("etc/resolv.conf", "# There is no DNS here: call a backend through GATEWAY_URL.\n"),
    ("opt/postern/sandboxd", ""),
];

const FILES: [(&str, &str); 4] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/:/usr/sbin/nologin\nuser:x:1000:1000:user:/home/user:/bin/bash\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    ),
    (
        PASSWD_OF_ZERO,
        "user:x:0:0:user:/home/user:/bin/bash\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    ),
    ("etc/group", "root:x:0:\nuser:x:1000:\nnogroup:x:65534:\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
];

/// The id that the agent has inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentId {
    /// 1000.
    Usual,
    /// 0, where only one id can be mapped.
    Zero,
}

/// An image's users with the agent among them: nobody else has its name or its id.
#[must_use]
pub fn with_user(passwd: &str, id: AgentId, shell: &str) -> String {
    let id = match id {
        AgentId::Usual => "1000",
        AgentId::Zero => "0",
    };
    let others = lines(passwd, |name, number| name != "user" && number != Some(id));
    format!("user:x:{id}:{id}:user:{}:{shell}\n{others}", inside::HOME)
}

/// An image's groups with the agent's.
#[must_use]
pub fn with_group(group: &str) -> String {
    let others = lines(group, |name, number| name != "user" && number != Some("1000"));
    format!("user:x:1000:\n{others}")
}

/// The lines whose name and number are kept.
fn lines(text: &str, keep: impl Fn(&str, Option<&str>) -> bool) -> String {
    let is_kept = |line: &&str| {
        let mut fields = line.split(':');
        fields.next().is_some_and(|name| !name.is_empty() && keep(name, fields.nth(1)))
    };
    text.lines().filter(is_kept).flat_map(|line| [line, "\n"]).collect()
}

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
    for name in MOUNT_POINTS {
        let path = draft.join(name);
        fs::create_dir_all(&path).map_err(failed(&path))?;
    }
    for name in LINKS {
        let (host, path) = (Path::new("/").join(name), draft.join(name));
        if host.exists() {
            link(&Path::new("usr").join(name), &path).map_err(failed(&path))?;
        }
    }
    for (name, text) in FILES.into_iter().chain(FURNITURE) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_is_the_only_one_with_its_name_and_id() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nuser:x:7:7::/:/x\ndev:x:1000:1000::/:/x\n\nnobody:x:65534:65534::/:/x";
        assert_eq!(
            with_user(passwd, AgentId::Usual, "/bin/sh"),
            "user:x:1000:1000:user:/home/user:/bin/sh\nroot:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/x\n"
        );
        assert_eq!(
            with_user(passwd, AgentId::Zero, "/bin/sh"),
            "user:x:0:0:user:/home/user:/bin/sh\ndev:x:1000:1000::/:/x\nnobody:x:65534:65534::/:/x\n"
        );
        assert_eq!(with_group("root:x:0:\nstaff:x:1000:\n"), "user:x:1000:\nroot:x:0:\n");
        assert_eq!(with_user("", AgentId::Usual, "/bin/sh"), "user:x:1000:1000:user:/home/user:/bin/sh\n");
    }
}
