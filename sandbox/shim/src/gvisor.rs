// SPDX-License-Identifier: Apache-2.0
//! The OCI bundle and the command line of gVisor's `runsc` for one sandbox.

use crate::disk::Disk;
use crate::folder::RunFolder;
use crate::image;
use crate::rootfs::{MASKED, PASSWD_OF_ZERO, inside};
use crate::seccomp;
use crate::spec::{INSIDE_UID, Spec};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;

/// Open files of one process; what a Linux user gets at most by default.
const OPEN_FILES: u32 = 65_536;

/// Writes the bundle.
///
/// # Errors
/// If the run folder is full or gone.
pub fn write_bundle(spec: &Spec, folder: &RunFolder, disk: &Disk) -> io::Result<()> {
    fs::create_dir_all(folder.bundle())?;
    // What is left of a sandbox of this name that ended would be taken for this one.
    match fs::remove_dir_all(folder.runsc_state()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => fs::create_dir_all(folder.runsc_state())?,
    }
    fs::write(folder.bundle().join("config.json"), serde_json::to_vec(&config(spec, folder, disk))?)
}

/// The arguments, without the program.
///
/// `--network=none` leaves only loopback; `--host-uds=open` lets the gateway's socket be opened,
/// which lies alone in the one bound folder that has any; `--oci-seccomp` makes gVisor's kernel
/// apply the bundle's filter.
#[must_use]
pub fn arguments(spec: &Spec, folder: &RunFolder) -> Vec<OsString> {
    let mut line = common(spec, folder);
    if spec.is_restored {
        // Whoever is restored as another sandbox is another user outside, which nothing in the picture
        // knows. The bundle is ours, and so is the picture: it was sealed.
        line.push("--restore-spec-validation=ignore".into());
        line.extend(["restore".into(), "-image-path".into(), folder.memory().into()]);
    } else {
        line.push("run".into());
    }
    line.extend(["-bundle".into(), folder.bundle().into(), spec.sandbox.as_str().into()]);
    line
}

/// The arguments of a call that writes the picture of a running sandbox's memory, and lets it run on.
#[must_use]
pub fn picture(spec: &Spec, folder: &RunFolder) -> Vec<OsString> {
    let mut line = common(spec, folder);
    line.extend(["checkpoint", "-leave-running", "-compression=none", "-image-path"].map(OsString::from));
    line.extend([folder.memory().into(), spec.sandbox.as_str().into()]);
    line
}

/// What every call of `runsc` about this sandbox begins with.
fn common(spec: &Spec, folder: &RunFolder) -> Vec<OsString> {
    let mut line: Vec<OsString> = vec!["--root".into(), folder.runsc_state().into()];
    line.extend(
        [
            "--platform=systrap",
            "--network=none",
            "--host-uds=open",
            "--ignore-cgroups",
            "--oci-seccomp",
            "--overlay2=none",
        ]
        .map(OsString::from),
    );
    if spec.guest.is_none() {
        line.push("--rootless".into());
    }
    line
}

fn config(spec: &Spec, folder: &RunFolder, disk: &Disk) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "hostname": "sandbox",
        "process": {
            // Here a call into the kernel costs ten times one of Linux's.
            "args": [inside::SANDBOXD, "--gather"],
            "cwd": inside::HOME,
            "env": [],
            "user": { "uid": spec.inside_uid(), "gid": spec.inside_uid() },
            "capabilities": {},
            "noNewPrivileges": true,
            "rlimits": [rlimit("RLIMIT_NPROC", spec.limits.pids), rlimit("RLIMIT_NOFILE", OPEN_FILES)],
        },
        "root": { "path": image::root(spec, folder), "readonly": true },
        "mounts": mounts(spec, folder, disk),
        "linux": linux(spec),
    })
}

fn rlimit(name: &str, value: u32) -> Value {
    json!({ "type": name, "soft": value, "hard": value })
}

fn mounts(spec: &Spec, folder: &RunFolder, disk: &Disk) -> Vec<Value> {
    let mut mounts = Vec::new();
    if !spec.is_image {
        mounts.push(bind(Path::new("/usr"), "/usr", "ro"));
        let masked = MASKED.into_iter().filter(|path| Path::new(path).is_dir());
        mounts.extend(masked.map(|path| tmpfs(path, "ro", 4096)));
    }
    mounts.push(json!({ "destination": "/proc", "type": "proc", "source": "proc" }));
    mounts.push(json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs" }));
    mounts.push(json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts" }));
    mounts.push(tmpfs("/dev/shm", "mode=1777", spec.shared_memory_bytes()));
    mounts.push(tmpfs("/tmp", "mode=1777", spec.tmp_bytes()));
    if spec.inside_uid() == 0 {
        mounts.push(bind(&image::root(spec, folder).join(PASSWD_OF_ZERO), "/etc/passwd", "ro"));
    }
    mounts.push(bind(&folder.gateway(), inside::GATEWAY, "ro"));
    mounts.push(bind(&spec.sandboxd, inside::SANDBOXD, "ro"));
    if spec.guest.is_some() {
        mounts.push(bind(&disk.data, inside::DATA, "rw"));
    } else {
        // Whoever we are owns `/data` too, and must not be able to put anything into it.
        mounts.push(bind(&disk.data, inside::DATA, "ro"));
        mounts.push(bind(&disk.user(), inside::USER, "rw"));
        mounts.push(bind(&disk.scratch(), inside::SCRATCH, "rw"));
    }
    mounts.push(bind(&disk.home, inside::HOME, "rw"));
    mounts
}

fn bind(outside: &Path, inside: &str, mode: &str) -> Value {
    json!({ "destination": inside, "type": "bind", "source": outside, "options": [mode, "rbind", "nosuid", "nodev"] })
}

fn tmpfs(inside: &str, mode: &str, bytes: u64) -> Value {
    json!({ "destination": inside, "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "nodev", mode, format!("size={bytes}")] })
}

/// As root the agent is a user of its own outside too; gVisor's root (that nobody is) maps to the
/// next id. Otherwise `runsc` has mapped us to 0 before it reads this.
fn linux(spec: &Spec) -> Value {
    let map = match spec.guest {
        Some(guest) => json!([
            { "containerID": INSIDE_UID, "hostID": guest, "size": 1 },
            { "containerID": 0, "hostID": guest + 1, "size": 1 },
        ]),
        None => json!([{ "containerID": 0, "hostID": 0, "size": 1 }]),
    };
    let namespaces: Vec<Value> = ["user", "pid", "mount", "ipc", "uts", "network"]
        .iter()
        .map(|kind| json!({ "type": kind }))
        .collect();
    json!({ "namespaces": namespaces, "uidMappings": map, "gidMappings": map,
            "seccomp": seccomp::oci() })
}
