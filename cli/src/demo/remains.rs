// SPDX-License-Identifier: Apache-2.0
//! What is left of an installation on this machine: processes, mounts, sockets and cgroups that
//! bear its data folder or one of its sandboxes in their name.

use anyhow::Context as _;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

/// Folders within folders that are looked into.
const MAX_DEPTH: usize = 12;

/// Everything that is left, one line each.
pub(super) fn of(data: &Path) -> anyhow::Result<Vec<String>> {
    let data = data.to_str().context("the data folder's name is not UTF-8")?;
    let mut found = Vec::new();
    processes(data, &mut found)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    found.extend(mounts.lines().filter(|line| line.contains(data)).map(|line| format!("mount {line}")));
    below(Path::new(data), 0, &mut |path, kind| {
        if kind.is_socket() {
            found.push(format!("socket {}", path.display()));
        }
    });
    let sandboxes = sandboxes(data);
    below(Path::new("/sys/fs/cgroup"), 0, &mut |path, kind| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if kind.is_dir() && sandboxes.iter().any(|sandbox| name.contains(sandbox.as_str())) {
            found.push(format!("cgroup {}", path.display()));
        }
    });
    Ok(found)
}

/// Processes whose command line names the folder.
fn processes(data: &str, found: &mut Vec<String>) -> anyhow::Result<()> {
    let own = std::process::id().to_string();
    for entry in fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|pid| pid.bytes().all(|byte| byte.is_ascii_digit())) else {
            continue;
        };
        // It may have ended since it was listed.
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if pid != own && command.contains(data) {
            found.push(format!("process {pid} {command}"));
        }
    }
    Ok(())
}

/// Ids of the sandboxes that the folder has ever held something of.
fn sandboxes(data: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    below(Path::new(data), 0, &mut |path, _| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("sandbox-") {
            found.insert(name.to_owned());
        }
    });
    found
}

fn below(folder: &Path, depth: usize, see: &mut impl FnMut(&Path, fs::FileType)) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        see(&entry.path(), kind);
        if kind.is_dir() && depth < MAX_DEPTH {
            below(&entry.path(), depth + 1, see);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::process::{Command, Stdio};

    #[test]
    fn a_socket_and_a_process_are_found_and_then_gone() {
        let folder = tempfile::tempdir().expect("a folder");
        let inside = folder.path().join("run");
        fs::create_dir(&inside).expect("makes it");
        let socket = inside.join("gateway.sock");
        let listener = UnixListener::bind(&socket).expect("listens");
        let mut child = Command::new("sh")
            .args(["-c", "read line", "sh"])
            .arg(folder.path())
            .stdin(Stdio::piped())
            .spawn()
            .expect("starts");
        let found = of(folder.path()).expect("looks").join("\n");
        assert!(found.contains("socket") && found.contains(&format!("process {}", child.id())), "{found}");
        drop(child.stdin.take());
        child.wait().expect("ends");
        drop(listener);
        fs::remove_file(&socket).expect("removes");
        assert_eq!(of(folder.path()).expect("looks"), Vec::<String>::new());
    }
}
