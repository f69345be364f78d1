// SPDX-License-Identifier: Apache-2.0
//! Finding and ending processes of this machine that belong to a sandbox.
//!
//! Where there is a cgroup it is asked (see `cgroup`). These are the ways without: descendants of
//! a process, and processes whose command line names the sandbox's run folder, as those of the
//! shim, bubblewrap and gVisor do. What runs inside a sandbox dies with these.

use rustix::process::{Pid, Signal};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The program that each sandbox has one of.
const SHIM: &str = "postern-shim";

/// Every process of our programs of which an argument is `folder`, lies in it, or is `--option=`
/// such a path.
#[must_use]
pub fn that_name(folder: &Path) -> BTreeSet<i32> {
    all().into_iter().filter(|pid| names(*pid, folder)).collect()
}

/// A reader of the folder (`ls`, an editor) names it too, so only our programs count.
fn names(pid: i32, folder: &Path) -> bool {
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let mut arguments = line.split(|byte| *byte == 0);
    let program = arguments.next().map(|path| Path::new(OsStr::from_bytes(path)));
    let is_ours = program.and_then(Path::file_name).and_then(OsStr::to_str).is_some_and(is_program);
    is_ours
        && arguments.any(|argument| {
            let start = argument.iter().position(|byte| *byte == b'/');
            let path = start.and_then(|start| argument.get(start..)).map(OsStr::from_bytes);
            path.is_some_and(|path| Path::new(path).starts_with(folder))
        })
}

/// The shim, itself again under the name that it starts itself by, and the runtimes, of which
/// gVisor calls its parts `runsc-sandbox` and `runsc-gofer`.
fn is_program(name: &str) -> bool {
    matches!(name, SHIM | "exe" | "bwrap") || name.starts_with("runsc")
}

/// The shim that serves a run folder, if one runs.
#[must_use]
pub fn shim_of(folder: &Path) -> Option<i32> {
    all().into_iter().find(|pid| serves(*pid, folder) && is_running(*pid))
}

fn serves(pid: i32, folder: &Path) -> bool {
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let mut words = line.split(|byte| *byte == 0).map(OsStr::from_bytes);
    let program = words.next().and_then(|path| Path::new(path).file_name());
    program == Some(OsStr::new(SHIM))
        && words.next() == Some(OsStr::new("run"))
        && words.next() == Some(folder.as_os_str())
}

/// All descendants of a process, itself not included.
#[must_use]
pub fn below(parent: i32) -> BTreeSet<i32> {
    let pairs: Vec<(i32, i32)> = all().into_iter().filter_map(|pid| Some((pid, parent_of(pid)?))).collect();
    let mut found = BTreeSet::new();
    loop {
        let more: Vec<i32> = pairs
            .iter()
            .filter(|(pid, of)| (*of == parent || found.contains(of)) && !found.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

/// The processors' time of a process and of those that it has waited for; `None` if it is gone.
#[must_use]
pub fn time_microseconds(pid: i32) -> Option<u64> {
    /// A tick of `/proc` (proc(5)): 100 a second on every architecture that we know.
    const TICK_MICROSECONDS: u64 = 10_000;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything; fields 14 to 17 are times.
    let (_, fields) = stat.rsplit_once(')')?;
    let times = fields.split_ascii_whitespace().skip(11).take(4);
    Some(times.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>() * TICK_MICROSECONDS)
}

/// Kills each of them; one that is gone already is no mistake.
pub fn kill(pids: impl IntoIterator<Item = i32>) {
    for pid in pids.into_iter().filter_map(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

/// Whether the process still runs; one that only waits to be reaped does not.
#[must_use]
pub fn is_running(pid: i32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z' && state != 'X')
}

fn parent_of(pid: i32) -> Option<i32> {
    stat(pid).map(|(_, parent)| parent)
}

/// State and parent. The name before them may hold anything, so they are looked for behind it.
fn stat(pid: i32) -> Option<(char, i32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn all() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}
