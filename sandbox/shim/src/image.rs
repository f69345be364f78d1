// SPDX-License-Identifier: Apache-2.0
//! Shows an image to its sandbox. Images are kept where sandboxes' users cannot go; as root we mount
//! the one that is meant in the sandbox's own folder, without devices and set-user-id bits. The
//! mount goes with the others when the sandbox ends.

use crate::disk;
use crate::folder::RunFolder;
use crate::spec::{IsolatedBy, Spec};
use rustix::mount::{MountFlags, MountPropagationFlags};
use std::fs;
use std::io;
use std::path::PathBuf;

/// Where the runtime finds the root.
#[must_use]
pub fn root(spec: &Spec, folder: &RunFolder) -> PathBuf {
    if is_shown(spec) { folder.root() } else { spec.skeleton.clone() }
}

/// Only root can mount, and needs to: anybody else is the sandbox's user.
const fn is_shown(spec: &Spec) -> bool {
    spec.is_image && spec.guest.is_some()
}

/// Mounts the image, if that is needed.
///
/// # Errors
/// What the kernel says.
pub fn show(spec: &Spec, folder: &RunFolder) -> io::Result<()> {
    let Some(guest) = spec.guest.filter(|_| spec.is_image) else { return Ok(()) };
    if matches!(spec.isolation, IsolatedBy::Gvisor { .. }) {
        // gVisor opens its root as the sandbox's other user, and all else for it.
        disk::open_to(folder.path(), guest + 1)?;
    }
    let at = folder.root();
    fs::create_dir_all(&at)?;
    rustix::mount::mount_bind(&spec.skeleton, &at)?;
    rustix::mount::mount_change(&at, MountPropagationFlags::PRIVATE)?;
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    Ok(rustix::mount::mount_remount(&at, flags, c"")?)
}
