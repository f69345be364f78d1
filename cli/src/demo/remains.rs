// SPDX-License-Identifier: Apache-2.0
//! What is left of an installation on this machine: processes, mounts, sockets and cgroups that
//! bear its data folder or one of its sandboxes in their name.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

/// Folders within folders that are looked into.
const MAX_DEPTH: usize = 12;

/// Everything that is left of what lies in these folders, one line each.
pub(super) fn of(folders: &[&Path]) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let names: Vec<&str> = folders.iter().filter_map(|folder| folder.to_str()).collect();
    anyhow::ensure!(names.len() == folders.len(), "a folder's name is not UTF-8");
    let is_ours = |text: &str| names.iter().any(|name| text.contains(name));
    processes(&is_ours, &mut found)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    found.extend(mounts.lines().filter(|line| is_ours(line)).map(|line| format!("mount {line}")));
    let mut sandboxes = BTreeSet::new();
    for folder in folders {
        below(folder, 0, &mut |path, kind| {
            if kind.is_socket() {
                found.push(format!("socket {}", path.display()));
            }
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with("sandbox-") {
                sandboxes.insert(name.to_owned());
            }
        });
    }
    below(Path::new("/sys/fs/cgroup"), 0, &mut |path, kind| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if kind.is_dir() && sandboxes.iter().any(|sandbox| name.contains(sandbox.as_str())) {
            found.push(format!("cgroup {}", path.display()));
        }
    });
    Ok(found)
}

/// Processes whose command line is ours.
fn processes(is_ours: &impl Fn(&str) -> bool, found: &mut Vec<String>) -> anyhow::Result<()> {
    let own = std::process::id().to_string();
    for entry in fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|pid| pid.bytes().all(|byte| byte.is_ascii_digit())) else {
            continue;
        };
        // It may have ended since it was listed.
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if pid != own && is_ours(&command) {
            found.push(format!("process {pid} {command}"));
        }
    }
    Ok(())
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
    use std::io::Read as _;
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
            .args(["-c", "echo ready; read line", "sh"])
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        // `spawn` returns before the kernel has set the new command line.
        let mut ready = [0; 6];
        child.stdout.take().expect("piped").read_exact(&mut ready).expect("it runs");
        let found = of(&[folder.path()]).expect("looks").join("\n");
        assert!(found.contains("socket") && found.contains(&format!("process {}", child.id())), "{found}");
        drop(child.stdin.take());
        child.wait().expect("ends");
        drop(listener);
        fs::remove_file(&socket).expect("removes");
        assert_eq!(of(&[folder.path()]).expect("looks"), Vec::<String>::new());
    }
}
