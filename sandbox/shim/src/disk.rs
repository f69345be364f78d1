// SPDX-License-Identifier: Apache-2.0
//! The disk of one sandbox: what `/data` and its home are on.
//!
//! As root it is an ext4 image of the limit's size in the slot, mounted in the run folder: the
//! one quota that every Linux enforces. Otherwise it is a plain folder, and the limit is reported
//! as not enforced. The mount outlives the shim that the orchestrator stops, so that the user's
//! last files can be saved; the orchestrator unmounts it.

mod attach;
mod blank;
mod torn;

pub use torn::{believe, is_torn};

use crate::folder::RunFolder;
use crate::mounts::{is_mounted, unmount_below};
use crate::spec::Spec;
use rustix::fs::{Gid, Uid};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The image's name in its slot.
const IMAGE: &str = "disk.img";
/// How long the kernel, or a process that is ending, may hold an image that was unmounted.
const LOOP_TIME: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// The disk could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A folder or file of it.
    #[error("could not make `{}`", path.display())]
    Make {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The image that bounds its size.
    #[error("could not make or mount the disk image `{}`, which works on this machine; is its disk full, or are all loop devices in use?", path.display())]
    Image {
        /// The image.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The slot is neither an image nor can it be bound.
    #[error("could not show `{}` to the sandbox's user", path.display())]
    Bind {
        /// The slot.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A sandbox's disk.
#[derive(Debug, Clone)]
pub struct Disk {
    /// Bound at `/data`: `user` and `scratch`.
    pub data: PathBuf,
    /// Bound at the home folder.
    pub home: PathBuf,
}

impl Disk {
    /// Where it is, or will be once it is prepared.
    #[must_use]
    pub fn of(folder: &RunFolder) -> Self {
        Self { data: folder.disk().join("data"), home: folder.disk().join("home") }
    }

    /// The user's files, `/data/user`.
    #[must_use]
    pub fn user(&self) -> PathBuf {
        self.data.join("user")
    }

    /// What dies with the sandbox, `/data/scratch`.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.data.join("scratch")
    }
}

/// Makes the disk, or finds the one that was made before; tells whether its size is bounded.
///
/// # Errors
/// [`DiskError`]; a size that cannot be enforced is one only where it must be.
pub fn prepare(spec: &Spec, folder: &RunFolder) -> Result<bool, DiskError> {
    create(&spec.slot)?;
    create(&folder.disk())?;
    let image = spec.slot.join(IMAGE);
    let was_there = image.exists();
    if was_there || plain(&spec.slot).exists() {
        go_on(&spec.slot, &folder.disk()).map_err(failed(&spec.slot))?;
    } else {
        torn::note_run(&spec.slot).map_err(failed(&spec.slot))?;
    }
    let mounted = match spec.guest {
        Some(_) => mount_image(&spec.slot, spec.limits.disk_bytes, &folder.disk()),
        None => Err(io::Error::other("only root can mount one")),
    };
    let is_sized = mounted.is_ok();
    if let Err(source) = mounted {
        if spec.must_hold.disk || was_there {
            return Err(DiskError::Image { path: image, source });
        }
        // What the try left would be taken for the disk after a restart of the machine.
        drop(fs::remove_file(image));
        let plain = plain(&spec.slot);
        create(&plain)?;
        show(spec, &plain, &folder.disk())?;
    }
    let disk = Disk::of(folder);
    // INVARIANT: `/data` itself is the host's. Its guest can put nothing in the place of `user`,
    // which is opened by this path when its files are kept.
    create(&disk.data)?;
    fs::set_permissions(&disk.data, fs::Permissions::from_mode(0o755)).map_err(failed(&disk.data))?;
    for path in [disk.user(), disk.scratch(), disk.home] {
        create(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).map_err(failed(&path))?;
        if let Some(guest) = spec.guest {
            lchown(&path, Some(guest), Some(guest)).map_err(failed(&path))?;
        }
    }
    Ok(is_sized)
}

/// Where a slot without an image keeps its files.
#[must_use]
pub fn plain(slot: &Path) -> PathBuf {
    slot.join("files")
}

/// Mounts the image of an ended sandbox again, to be read only; `false` if it has none.
///
/// # Errors
/// If the kernel refuses it.
pub fn show_again(slot: &Path, at: &Path) -> io::Result<bool> {
    let image = slot.join(IMAGE);
    if !image.is_file() {
        return Ok(false);
    }
    if is_mounted(at) {
        return Ok(true);
    }
    fs::create_dir_all(at)?;
    mount_again(&image, at, true, LOOP_TIME)?;
    Ok(true)
}

/// Prepares the disk of before, which is at hand at `at` if it is at all, for being written again. What was
/// cut off in the middle is put right first: new files would take the blocks of others there.
fn go_on(slot: &Path, at: &Path) -> io::Result<()> {
    if torn::is_live(at)? {
        return Ok(());
    }
    if is_mounted(at) {
        // It was shown after it was settled, so that its files could be saved.
        unmount_below(at, None)?;
    }
    if !torn::begin_again(slot)? {
        let image = slot.join(IMAGE);
        let_go(&image)?;
        repair(&image)?;
    }
    Ok(())
}

/// Has `e2fsck` put right what is wrong with an image, as far as nothing has to be decided for that.
fn repair(image: &Path) -> io::Result<()> {
    /// e2fsck(8): errors were corrected.
    const CORRECTED: i32 = 1;
    match command(Command::new("e2fsck").args(["-f", "-p"]).arg(image)).status()?.code() {
        Some(0 | CORRECTED) => Ok(()),
        code => Err(io::Error::other(format!("the disk image is damaged: `e2fsck -p` ended with {code:?}"))),
    }
}

/// Brings all of the disk of a sandbox whose processes have ended to the machine's own disk, and shows it no
/// more. Whatever the machine does from then on, it is there: if it is torn that is an error, for then it is not.
///
/// # Errors
/// If not all of it is there; it may be repeated.
pub fn settle(slot: &Path, at: &Path) -> io::Result<()> {
    let (image, plain) = (slot.join(IMAGE), plain(slot));
    let is_torn = torn::is_of_another_run(slot, torn::is_live(at)?)?;
    unmount_below(at, None)?;
    let is_whole = if image.is_file() {
        let_go(&image)?;
        fs::File::open(&image)?.sync_all()?;
        torn::is_whole(&image)?
    } else if plain.is_dir() {
        rustix::fs::syncfs(fs::File::open(&plain)?)?;
        true
    } else {
        return Ok(());
    };
    if is_torn || !is_whole {
        return Err(io::Error::other("it may lack what was written to it"));
    }
    if !torn::is_settled(slot)? {
        // The slot's own name comes first.
        slot.parent().map_or(Ok(()), |slots| fs::File::open(slots)?.sync_all())?;
        torn::note_settled(slot)?;
    }
    Ok(())
}

/// Waits until the kernel holds an image no more.
fn let_go(image: &Path) -> io::Result<()> {
    let deadline = Instant::now() + LOOP_TIME;
    while attach::is_held(image)? {
        if Instant::now() > deadline {
            return Err(io::Error::other("what was mounted of it before is still in use"));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// Mounts an image that was mounted before, once the kernel has let go of it.
///
/// INVARIANT: never through a second loop device beside the first. The unmount that we made may
/// not have been the last: an ending process's namespace, or a file that is open on a detached
/// mount, keeps the file system alive, with writes that the image does not have yet.
fn mount_again(image: &Path, at: &Path, is_read_only: bool, within: Duration) -> io::Result<()> {
    let deadline = Instant::now() + within;
    loop {
        let mounted = if attach::is_held(image)? {
            Err(io::Error::other("what was mounted of it before is still in use"))
        } else {
            attach::mount(image, at, is_read_only)
        };
        match mounted {
            Err(_) if Instant::now() < deadline => std::thread::sleep(POLL),
            done => return done,
        }
    }
}

fn mount_image(slot: &Path, bytes: u64, at: &Path) -> io::Result<()> {
    if is_mounted(at) {
        return Ok(());
    }
    let image = slot.join(IMAGE);
    if image.exists() {
        return mount_again(&image, at, false, LOOP_TIME);
    }
    make_and_mount(slot, bytes, at)
}

/// Makes an image and mounts it. If it cannot be mounted the blank that it was copied from may be damaged:
/// then it is made anew, once.
fn make_and_mount(slot: &Path, bytes: u64, at: &Path) -> io::Result<()> {
    let (draft, image) = (slot.join("disk.draft"), slot.join(IMAGE));
    let mount = || {
        blank::copy(slot, bytes, &draft)?;
        fs::rename(&draft, &image)?;
        attach::mount(&image, at, false)
    };
    match mount() {
        Err(_) if blank::forget(slot, bytes) => mount(),
        mounted => mounted,
    }
}

/// A program of this machine that hears nothing and is not heard.
fn command(command: &mut Command) -> &mut Command {
    let path = "/usr/sbin:/usr/bin:/sbin:/bin";
    command.env_clear().env("PATH", path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

fn run(program: &mut Command) -> io::Result<()> {
    let done = command(program).status()?;
    if done.success() { Ok(()) } else { Err(io::Error::other(done.to_string())) }
}

/// Root's slot may lie where the agent's user cannot go, so it is bound; ours is linked to.
fn show(spec: &Spec, plain: &Path, at: &Path) -> Result<(), DiskError> {
    let failed = |source| DiskError::Bind { path: plain.to_owned(), source };
    if spec.guest.is_none() {
        drop(fs::remove_dir(at));
        return std::os::unix::fs::symlink(plain, at)
            .or_else(|error| if at.is_symlink() { Ok(()) } else { Err(failed(error)) });
    }
    if is_mounted(at) {
        Ok(())
    } else {
        rustix::mount::mount_bind(plain, at).map_err(|error| failed(error.into()))
    }
}

fn create(path: &Path) -> Result<(), DiskError> {
    fs::create_dir_all(path).map_err(failed(path))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    let path = path.to_owned();
    |source| DiskError::Make { path, source }
}

/// Gives a folder to the sandbox's user to pass through and to nobody else.
///
/// # Errors
/// If the folder is gone, or not ours.
pub fn open_to(folder: &Path, guest: u32) -> io::Result<()> {
    rustix::fs::chown(folder, Some(Uid::ROOT), Some(Gid::from_raw(guest)))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o710))
}

/// Lets everybody who may pass through the folder above reach what is in this one by name:
/// the sandbox's user, and the other user that gVisor opens files as.
///
/// # Errors
/// If the folder is gone, or not ours.
pub fn open_below(folder: &Path) -> io::Result<()> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o711))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mount::{UnmountFlags, unmount};
    use std::fs::File;

    #[test]
    fn a_damaged_blank_is_replaced_and_costs_one_start_some_time() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let (slot, at) = (folder.path().join("slot"), folder.path().join("at"));
        fs::create_dir(&slot).expect("a folder");
        fs::create_dir(&at).expect("a folder");
        let kept = folder.path().join(format!("blank-{}.img", 16 << 20));
        // What a crash of the machine leaves of a file that nobody had brought to the disk: its length.
        File::create(&kept).and_then(|file| file.set_len(16 << 20)).expect("makes");
        make_and_mount(&slot, 16 << 20, &at).expect("is made anew");
        fs::write(at.join("kept"), "text").expect("writes");
        unmount(&at, UnmountFlags::empty()).expect("unmounts");
        let whole = Command::new("e2fsck").args(["-f", "-n"]).arg(&kept).output();
        assert!(whole.expect("runs").status.success(), "the blank that is kept now is whole");
    }

    #[test]
    fn an_image_is_not_mounted_a_second_time_while_its_first_mount_lives() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let (image, at) = (folder.path().join(IMAGE), folder.path().join("at"));
        blank::copy(folder.path(), 16 << 20, &image).expect("a blank");
        fs::create_dir(&at).expect("a folder");
        attach::mount(&image, &at, false).expect("mounts");
        fs::write(at.join("kept"), "text").expect("writes");
        let holder = File::open(at.join("kept")).expect("opens");
        unmount(&at, UnmountFlags::DETACH).expect("detaches");
        let refused = mount_again(&image, &at, true, Duration::ZERO).expect_err("is held");
        assert!(refused.to_string().contains("still in use"), "{refused}");
        drop(holder);
        assert!(show_again(folder.path(), &at).expect("mounts again"));
        assert_eq!(fs::read_to_string(at.join("kept")).expect("is there"), "text");
        unmount(&at, UnmountFlags::empty()).expect("unmounts");
    }

    /// A slot with a file, whose image is mounted.
    fn written(folder: &Path) -> (PathBuf, PathBuf) {
        let (slot, at) = (folder.join("slot"), folder.join("at"));
        fs::create_dir(&slot).expect("a folder");
        fs::create_dir(&at).expect("a folder");
        torn::note_run(&slot).expect("notes");
        make_and_mount(&slot, 16 << 20, &at).expect("is made");
        fs::write(at.join("kept"), "text").expect("writes");
        (slot, at)
    }

    #[test]
    fn what_was_settled_is_whole_whatever_the_machine_does_until_it_is_written_again() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let (slot, at) = written(folder.path());
        settle(&slot, &at).expect("settles");
        assert!(!is_mounted(&at) && !attach::is_held(&slot.join(IMAGE)).expect("is there"));
        assert_eq!(fs::read(slot.join("run")).expect("reads"), b"settled\n", "whichever run of it this is");
        assert!(!is_torn(&slot, &at).expect("answers"));
        assert!(show_again(&slot, &at).expect("is shown"));
        settle(&slot, &at).expect("settles again");
        assert!(!is_mounted(&at), "what was shown is shown no more");
        go_on(&slot, &at).expect("goes on");
        mount_image(&slot, 16 << 20, &at).expect("mounts");
        assert_eq!(
            fs::read(slot.join("run")).expect("reads"),
            fs::read("/proc/sys/kernel/random/boot_id").expect("reads")
        );
        // What is left of it when the machine stops now.
        fs::write(slot.join("run"), "another run\n").expect("writes");
        settle(&slot, &at).expect_err("is torn");
        assert!(is_torn(&slot, &at).expect("answers"), "and stays so");
        go_on(&slot, &at).expect("goes on");
        mount_image(&slot, 16 << 20, &at).expect("mounts");
        assert!(is_torn(&slot, &at).expect("answers"), "also when it is written again");
        believe(&slot).expect("notes");
        assert!(!is_torn(&slot, &at).expect("answers"), "until somebody has compared it");
        settle(&slot, &at).expect("settles");
    }

    #[test]
    fn an_image_that_was_cut_off_is_put_right_before_it_is_written() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let (slot, at) = written(folder.path());
        settle(&slot, &at).expect("settles");
        let image = slot.join(IMAGE);
        // The inode of a file that is there counts as free, and nobody unmounted it.
        for order in ["freei kept", "set_super_value state 0"] {
            let damaged = Command::new("debugfs").args(["-w", "-R", order]).arg(&image).output();
            assert!(damaged.expect("runs").status.success());
        }
        let is_whole = || {
            let checked = Command::new("e2fsck").args(["-f", "-n"]).arg(&image).output();
            checked.expect("runs").status.success()
        };
        assert!(!is_whole(), "the control: it is damaged");
        assert!(is_torn(&slot, &at).expect("answers"));
        go_on(&slot, &at).expect("is put right");
        assert!(is_whole());
        mount_image(&slot, 16 << 20, &at).expect("mounts");
        assert_eq!(fs::read_to_string(at.join("kept")).expect("is there"), "text");
        assert!(is_torn(&slot, &at).expect("answers"), "what it holds is not believed yet");
        unmount_below(&at, None).expect("unmounts");
        let_go(&image).expect("is let go of");
        fs::write(&image, vec![0; 1 << 20]).expect("writes");
        go_on(&slot, &at).expect_err("what cannot be put right is not written");
    }

    #[test]
    fn a_disk_that_was_shown_to_be_read_can_be_written_by_a_sandbox_that_wakes() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let (image, at) = (folder.path().join(IMAGE), folder.path().join("at"));
        blank::copy(folder.path(), 16 << 20, &image).expect("a blank");
        assert!(show_again(folder.path(), &at).expect("mounts"));
        assert!(fs::write(at.join("kept"), "text").is_err(), "the control: it can only be read");
        go_on(folder.path(), &at).expect("is let go of");
        mount_image(folder.path(), 16 << 20, &at).expect("mounts");
        fs::write(at.join("kept"), "text").expect("writes");
        mount_image(folder.path(), 16 << 20, &at).expect("is mounted");
        assert_eq!(fs::read_to_string(at.join("kept")).expect("is there"), "text");
        unmount(&at, UnmountFlags::empty()).expect("unmounts");
    }
}
