// SPDX-License-Identifier: Apache-2.0
//! The command line of bubblewrap for one sandbox.

use crate::disk::Disk;
use crate::folder::RunFolder;
use crate::image;
use crate::rootfs::{MASKED, inside};
use crate::spec::{INSIDE_UID, Spec};
use std::ffi::OsString;
use std::path::Path;

/// What `/proc` tells about this machine beyond its processes, or lets be changed.
const MASKED_FILES: [&str; 12] = [
    "/proc/kcore",
    "/proc/keys",
    "/proc/key-users",
    "/proc/kallsyms",
    "/proc/kmsg",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/config.gz",
    "/proc/cmdline",
    "/proc/modules",
    "/proc/slabinfo",
];
const MASKED_FOLDERS: [&str; 4] = ["/proc/acpi", "/proc/scsi", "/proc/driver", "/proc/fs"];
const READ_ONLY: [&str; 3] = ["/proc/sys", "/proc/irq", "/proc/bus"];

/// The arguments, without the program and the seccomp filters.
#[must_use]
pub fn arguments(spec: &Spec, folder: &RunFolder, disk: &Disk) -> Vec<OsString> {
    let mut line = Line(Vec::new());
    line.words(
        "--unshare-all --unshare-user --as-pid-1 --die-with-parent --new-session --cap-drop ALL --clearenv",
    );
    line.words(&format!("--uid {INSIDE_UID} --gid {INSIDE_UID} --hostname sandbox"));
    line.bind("--ro-bind", &image::root(spec, folder), "/");
    if !spec.is_image {
        line.bind("--ro-bind", Path::new("/usr"), "/usr");
        for path in MASKED.into_iter().filter(|path| Path::new(path).is_dir()) {
            line.words(&format!("--size 4096 --tmpfs {path} --remount-ro {path}"));
        }
    }
    line.words("--proc /proc --dev /dev");
    proc(&mut line);
    line.words(&format!("--size {} --perms 1777 --tmpfs /tmp", spec.tmp_bytes()));
    line.words(&format!("--size {} --perms 1777 --tmpfs /dev/shm", spec.shared_memory_bytes()));
    line.bind("--ro-bind", &folder.gateway(), inside::GATEWAY);
    line.bind("--ro-bind", &spec.sandboxd, inside::SANDBOXD);
    if spec.guest.is_some() {
        line.bind("--bind", &disk.data, inside::DATA);
    } else {
        // Whoever we are owns `/data` too, and must not be able to put anything into it.
        line.bind("--ro-bind", &disk.data, inside::DATA);
        line.bind("--bind", &disk.user(), inside::USER);
        line.bind("--bind", &disk.scratch(), inside::SCRATCH);
    }
    line.bind("--bind", &disk.home, inside::HOME);
    line.words(&format!("--chdir {} -- {} --landlock", inside::HOME, inside::SANDBOXD));
    line.0
}

fn proc(line: &mut Line) {
    for path in MASKED_FILES.into_iter().filter(|path| Path::new(path).exists()) {
        line.bind("--ro-bind", Path::new("/dev/null"), path);
    }
    for path in MASKED_FOLDERS.into_iter().filter(|path| Path::new(path).is_dir()) {
        line.words(&format!("--size 4096 --tmpfs {path} --remount-ro {path}"));
    }
    for path in READ_ONLY.into_iter().filter(|path| Path::new(path).is_dir()) {
        line.bind("--ro-bind", Path::new(path), path);
    }
}

struct Line(Vec<OsString>);

impl Line {
    /// Options that hold no path of the machine, and so no blank.
    fn words(&mut self, words: &str) {
        self.0.extend(words.split(' ').map(OsString::from));
    }

    fn bind(&mut self, how: &str, outside: &Path, inside: &str) {
        self.0.extend([how.into(), outside.into(), inside.into()]);
    }
}
