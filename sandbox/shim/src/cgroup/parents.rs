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
    /// On version 2 in a part of the tree that was delegated to this user, or as root of a container,
    /// moves this process into a leaf of its own first: only a group without processes may bound its
    /// children.
    #[must_use]
    pub fn find() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::among(&mounts, &own, rustix::process::geteuid().as_raw(), enable)
    }

    /// What `user` may use of these mounts (mountinfo), being in these groups, once controllers are
    /// enabled where they may be.
    fn among(mounts: &str, own: &str, user: u32, enable: fn(&Path)) -> Self {
        let mounts: Vec<Mount> = mounts.lines().filter_map(mount).collect();
        let two = mounts.iter().find(|mount| mount.version == Version::Two);
        let delegated = two.and_then(|mount| version_two(mount, own, user, enable));
        let parent = |controller: &str| {
            version_one(&mounts, own, controller, user).or_else(|| {
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

    /// Whether groups can be made here that the kernel freezes.
    #[must_use]
    pub const fn can_freeze(&self) -> bool {
        self.freezer.is_some()
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

fn version_one(mounts: &[Mount], own: &str, controller: &str, user: u32) -> Option<(Version, PathBuf)> {
    let mount = mounts.iter().find(|mount| {
        mount.version == Version::One && mount.options.split(',').any(|option| option == controller)
    })?;
    let folder = own_folder(mount, own, controller)?;
    is_of(&folder, user).then_some((Version::One, folder))
}

/// As root the top of what we see; else our own group, if it was given to us.
fn version_two(mount: &Mount, own: &str, user: u32, enable: fn(&Path)) -> Option<PathBuf> {
    if user == ROOT {
        enable(&mount.at);
        // A machine's top may have processes; what a container sees as its top may not.
        if withholds(&mount.at) && own_folder(mount, own, "").is_some_and(|own| own == mount.at) {
            step_aside(&mount.at);
            enable(&mount.at);
        }
        return Some(mount.at.clone());
    }
    let mut folder = own_folder(mount, own, "")?;
    if folder.ends_with(LEAF) {
        folder.pop();
    } else if is_of(&folder, user) {
        step_aside(&folder);
    }
    enable(&folder);
    is_of(&folder, user).then_some(folder)
}

/// Where this process goes, so that its group has none of its own.
const LEAF: &str = "postern-self";

/// Moves this process out of its group, into a leaf below it. If the kernel refuses, or others are in the
/// group too, the controllers are not offered below, which is then seen.
fn step_aside(folder: &Path) {
    let leaf = folder.join(LEAF);
    drop(fs::create_dir(&leaf));
    drop(super::enter(&leaf));
}

const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

fn enable(folder: &Path) {
    for controller in CONTROLLERS {
        drop(super::write(folder, "cgroup.subtree_control", format!("+{controller}")));
    }
}

/// Whether groups below `folder` lack a controller that it has.
fn withholds(folder: &Path) -> bool {
    let has = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
    CONTROLLERS.iter().any(|controller| {
        has.split_whitespace().any(|name| name == *controller) && !offers(folder, controller)
    })
}

/// Whether groups below `folder` have the controller. Every group of version 2 can be frozen.
fn offers(folder: &Path, controller: &str) -> bool {
    let enabled = fs::read_to_string(folder.join("cgroup.subtree_control")).unwrap_or_default();
    controller == "freezer" || enabled.split_whitespace().any(|name| name == controller)
}

const ROOT: u32 = 0;

/// Whether a user may make groups below `folder`.
fn is_of(folder: &Path, user: u32) -> bool {
    user == ROOT || fs::metadata(folder).is_ok_and(|found| found.uid() == user)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree like `/sys/fs/cgroup`, which belongs to whoever runs the test.
    struct Machine {
        folder: tempfile::TempDir,
        mounts: String,
    }

    impl Machine {
        fn new() -> Self {
            Self { folder: tempfile::tempdir().expect("a folder"), mounts: String::new() }
        }

        fn at(&self, path: &str) -> PathBuf {
            self.folder.path().join(path)
        }

        /// A hierarchy of version 1 with our own group in it.
        fn one(mut self, name: &str, controllers: &str) -> Self {
            fs::create_dir_all(self.at(name).join("own")).expect("makes");
            let at = self.at(name).display().to_string();
            self.mounts.push_str(&format!("30 25 0:26 / {at} rw,nosuid - cgroup cgroup rw,{controllers}\n"));
            self
        }

        /// The hierarchy of version 2, in which these controllers can be had.
        fn two(mut self, name: &str, controllers: &str) -> Self {
            fs::create_dir_all(self.at(name).join("own")).expect("makes");
            for folder in ["", "own"] {
                let file = self.at(name).join(folder).join("cgroup.subtree_control");
                fs::write(file, controllers).expect("writes");
            }
            let at = self.at(name).display().to_string();
            self.mounts.push_str(&format!("35 25 0:27 / {at} rw,nosuid - cgroup2 cgroup2 rw\n"));
            self
        }

        fn found(&self, own: &str, user: u32) -> Parents {
            Parents::among(&self.mounts, own, user, |_| {})
        }
    }

    const OWN_ONE: &str = "4:memory:/own\n3:cpu,cpuacct:/own\n2:pids:/own\n1:freezer:/own\n";
    const OWN_TWO: &str = "0::/own\n";

    fn me() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    /// Somebody who owns nothing of the machine.
    const STRANGER: u32 = 54321;

    fn one(machine: &Machine, name: &str) -> Option<(Version, PathBuf)> {
        Some((Version::One, machine.at(name).join("own")))
    }

    #[test]
    fn a_machine_of_version_1_bounds_in_our_own_group_of_each_hierarchy() {
        let machine = Machine::new()
            .one("memory", "memory")
            .one("cpu,cpuacct", "cpu,cpuacct")
            .one("pids", "pids")
            .one("freezer", "freezer");
        let found = machine.found(OWN_ONE, me());
        assert!(found.can_freeze());
        assert_eq!((found.memory, found.cpu), (one(&machine, "memory"), one(&machine, "cpu,cpuacct")));
        assert_eq!((found.pids, found.freezer), (one(&machine, "pids"), one(&machine, "freezer")));
        assert_eq!(machine.found(OWN_ONE, STRANGER), Parents::default(), "who owns no group bounds nothing");
    }

    #[test]
    fn on_a_machine_of_version_2_root_takes_the_top_and_another_what_was_delegated() {
        let machine = Machine::new().two("unified", "memory pids cpu");
        let top = Some((Version::Two, machine.at("unified")));
        let found = machine.found(OWN_TWO, ROOT);
        assert_eq!((&found.memory, &found.cpu, &found.pids, &found.freezer), (&top, &top, &top, &top));
        if me() != ROOT {
            let own = Some((Version::Two, machine.at("unified/own")));
            assert_eq!(machine.found(OWN_TWO, me()).memory, own);
        }
        assert_eq!(machine.found(OWN_TWO, STRANGER), Parents::default());
    }

    #[test]
    fn the_root_of_a_container_steps_aside_so_that_its_top_can_bound_others() {
        fn enable_once_empty(folder: &Path) {
            if folder.join(LEAF).is_dir() {
                fs::write(folder.join("cgroup.subtree_control"), "memory pids cpu").expect("writes");
            }
        }
        let machine = || {
            let machine = Machine::new().two("unified", "");
            fs::write(machine.at("unified/cgroup.controllers"), "cpuset cpu memory pids").expect("writes");
            machine
        };
        let contained = machine();
        let found = Parents::among(&contained.mounts, "0::/\n", ROOT, enable_once_empty);
        let top = Some((Version::Two, contained.at("unified")));
        assert_eq!((&found.memory, &found.cpu, &found.pids), (&top, &top, &top));
        // Who is not in the top group is in nobody's way there.
        let beside = machine();
        let found = Parents::among(&beside.mounts, OWN_TWO, ROOT, enable_once_empty);
        assert!(found.memory.is_none() && !beside.at("unified").join(LEAF).exists());
    }

    #[test]
    fn a_controller_that_version_2_does_not_offer_is_not_pretended() {
        let machine = Machine::new().two("unified", "memory");
        let found = machine.found(OWN_TWO, ROOT);
        assert!(found.memory.is_some() && found.freezer.is_some());
        assert_eq!((found.cpu, found.pids), (None, None));
        assert!(offers(&machine.at("unified"), "memory") && !offers(&machine.at("unified"), "cpu"));
        assert!(offers(&machine.at("unified"), "freezer"), "every group can be frozen");
    }

    #[test]
    fn a_hybrid_machine_takes_each_controller_where_it_is() {
        let machine = Machine::new().one("memory", "memory").two("unified", "pids").one("freezer", "freezer");
        let own = "4:memory:/own\n1:freezer:/own\n0::/\n";
        let found = machine.found(own, ROOT);
        assert_eq!((found.memory, found.freezer), (one(&machine, "memory"), one(&machine, "freezer")));
        assert_eq!(found.pids.map(|(version, _)| version), Some(Version::Two));
    }

    #[test]
    fn lines_that_are_no_groups_are_passed_over() {
        for line in
            ["", "36 35 98:0 / / rw - ext4 /dev/root rw", "30 25", "30 25 0:26 / /x rw - cgroup cgroup"]
        {
            assert!(mount(line).is_none(), "{line}");
        }
    }
}
