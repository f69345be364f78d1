// SPDX-License-Identifier: Apache-2.0
//! Where on this machine we may make groups.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The two interfaces of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A hierarchy for each controller.
    One,
    /// One hierarchy.
    Two,
}

/// Under which folder groups of each controller are made; `None` where we may not, or the
/// machine has no such controller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parents {
    pub(super) memory: Option<(Version, PathBuf)>,
    pub(super) cpu: Option<(Version, PathBuf)>,
    pub(super) pids: Option<(Version, PathBuf)>,
    pub(super) freezer: Option<(Version, PathBuf)>,
}

/// A mounted hierarchy.
struct Mount {
    version: Version,
    at: PathBuf,
    /// The part of the hierarchy that is mounted.
    root: String,
    options: String,
}

impl Parents {
    /// Looks at this machine.
    ///
    /// On version 2 in a part of the tree that was delegated to this user, moves this process
    /// into a leaf of its own first: only a group without processes may bound its children.
    #[must_use]
    pub fn find() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let is_root = rustix::process::geteuid().is_root();
        let mounts: Vec<Mount> = mounts.lines().filter_map(mount).collect();
        let two = mounts.iter().find(|mount| mount.version == Version::Two);
        let delegated = two.and_then(|mount| version_two(mount, &own, is_root));
        let parent = |controller: &str| {
            version_one(&mounts, &own, controller).or_else(|| {
                delegated
                    .as_ref()
                    .filter(|folder| offers(folder, controller))
                    .map(|folder| (Version::Two, folder.clone()))
            })
        };
        Self {
            memory: parent("memory"),
            cpu: parent("cpu"),
            pids: parent("pids"),
            freezer: parent("freezer"),
        }
    }

    /// The names of all groups under these parents.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let parents = [&self.memory, &self.cpu, &self.pids, &self.freezer];
        let mut names: Vec<String> = parents
            .into_iter()
            .flatten()
            .filter_map(|(_, folder)| fs::read_dir(folder).ok())
            .flat_map(|entries| {
                entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
            })
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// One line of mountinfo (proc(5)): `id parent device root at options [tags] - type source super`.
fn mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, at) = (left.next()?, left.next()?);
    let mut right = right.split(' ');
    let version = match right.next()? {
        "cgroup" => Version::One,
        "cgroup2" => Version::Two,
        _ => return None,
    };
    Some(Mount { version, at: at.into(), root: root.into(), options: right.nth(1)?.into() })
}

/// Our own group's folder in a hierarchy, given the lines of `/proc/self/cgroup`.
fn own_folder(mount: &Mount, own: &str, controller: &str) -> Option<PathBuf> {
    let path = own.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers.split(',').any(|name| name == controller).then_some(path)
    })?;
    let below = Path::new(path).strip_prefix(&mount.root).ok()?;
    Some(mount.at.join(below))
}

fn version_one(mounts: &[Mount], own: &str, controller: &str) -> Option<(Version, PathBuf)> {
    let mount = mounts.iter().find(|mount| {
        mount.version == Version::One && mount.options.split(',').any(|option| option == controller)
    })?;
    let folder = own_folder(mount, own, controller)?;
    is_ours(&folder).then_some((Version::One, folder))
}

/// As root the top of what we see; else our own group, if it was given to us.
fn version_two(mount: &Mount, own: &str, is_root: bool) -> Option<PathBuf> {
    if is_root {
        enable(&mount.at);
        return Some(mount.at.clone());
    }
    let mut folder = own_folder(mount, own, "")?;
    if folder.ends_with(LEAF) {
        folder.pop();
    } else if is_ours(&folder) {
        let leaf = folder.join(LEAF);
        // If the kernel refuses, the controllers are not offered below, which is then seen.
        drop(fs::create_dir(&leaf));
        drop(super::enter(&leaf));
    }
    enable(&folder);
    is_ours(&folder).then_some(folder)
}

/// Where this process goes, so that its group has none of its own.
const LEAF: &str = "postern-self";

fn enable(folder: &Path) {
    for controller in ["+memory", "+cpu", "+pids"] {
        drop(super::write(folder, "cgroup.subtree_control", controller));
    }
}

/// Whether groups below `folder` have the controller. Every group of version 2 can be frozen.
fn offers(folder: &Path, controller: &str) -> bool {
    let enabled = fs::read_to_string(folder.join("cgroup.subtree_control")).unwrap_or_default();
    controller == "freezer" || enabled.split_whitespace().any(|name| name == controller)
}

fn is_ours(folder: &Path) -> bool {
    let user = rustix::process::geteuid();
    user.is_root() || fs::metadata(folder).is_ok_and(|found| found.uid() == user.as_raw())
}
