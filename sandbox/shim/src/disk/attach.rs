// SPDX-License-Identifier: Apache-2.0
//! Mounts an image through a loop device, in two calls of the kernel. `mount(8)` does the same in
//! twice the time: it first looks at every loop device that there is.
//!
//! The device lets go of its image by itself once nothing holds it any more (`LO_FLAGS_AUTOCLEAR`),
//! so whoever is killed half-way leaves nothing behind.

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Setter, ioctl};
use rustix::mount::MountFlags;
use std::ffi::{CStr, c_void};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::ptr;

const CONTROL: &str = "/dev/loop-control";
/// `linux/loop.h`.
const LOOP_CONFIGURE: Opcode = 0x4c0a;
const LOOP_CTL_GET_FREE: Opcode = 0x4c82;
const READ_ONLY: u32 = 1;
const AUTOCLEAR: u32 = 4;
/// Others take free devices too; whoever comes second asks for the next.
const TRIES: u32 = 64;

/// `struct loop_config` of `linux/loop.h`; zero means the default.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// `struct loop_info64` of `linux/loop.h`.
#[repr(C)]
struct LoopInfo {
    device_inode_rdevice_offset_sizelimit: [u64; 5],
    number: u32,
    encryption: [u32; 2],
    flags: u32,
    names_and_key: [[u8; 32]; 5],
    init: [u64; 2],
}

/// The number of a device that nothing uses.
struct GetFree;

#[expect(unsafe_code, reason = "there is no wrapper of this request that is kept up")]
// SAFETY: LOOP_CTL_GET_FREE takes no argument and answers with a number.
unsafe impl Ioctl for GetFree {
    type Output = i32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        LOOP_CTL_GET_FREE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        ptr::null_mut()
    }

    unsafe fn output_from_ptr(number: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(number)
    }
}

/// Mounts `image`, an ext4 file system, at `at`: to be read only, or to be written too.
///
/// # Errors
/// If there is no free loop device, or the kernel refuses the image.
pub(super) fn mount(image: &Path, at: &Path, is_read_only: bool) -> io::Result<()> {
    let file = File::options().read(true).write(!is_read_only).open(image)?;
    // Held until it is mounted: from then on the mount holds it.
    let (path, device) = attach(&file, is_read_only)?;
    let always = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    let (flags, options): (_, Option<&CStr>) = if is_read_only {
        (always | MountFlags::RDONLY | MountFlags::NOEXEC, None)
    } else {
        // The image is a hole where its inode tables are, so nothing has to be zeroed.
        (always, Some(c"noinit_itable"))
    };
    rustix::mount::mount(&path, at, c"ext4", flags, options)?;
    drop(device);
    Ok(())
}

/// Whether a loop device holds `image`, that is, something of it may still be mounted somewhere.
///
/// # Errors
/// If the image is gone.
pub(super) fn is_held(image: &Path) -> io::Result<bool> {
    let image = image.canonicalize()?;
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let mut files =
        devices.filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
    Ok(files.any(|file| Path::new(file.trim_end_matches('\n')) == image))
}

fn attach(image: &File, is_read_only: bool) -> io::Result<(String, File)> {
    let control = File::open(CONTROL)?;
    for _ in 0..TRIES {
        #[expect(unsafe_code, reason = "see `GetFree`")]
        // SAFETY: `control` is the device whose request this is.
        let number = unsafe { ioctl(&control, GetFree) }?;
        let path = format!("/dev/loop{number}");
        let device = File::options().read(true).write(!is_read_only).open(&path)?;
        match configure(&device, image, is_read_only) {
            Ok(()) => return Ok((path, device)),
            Err(Errno::BUSY) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other("every free loop device was taken by somebody else"))
}

fn configure(device: &File, image: &File, is_read_only: bool) -> rustix::io::Result<()> {
    let config = LoopConfig {
        fd: u32::try_from(image.as_raw_fd()).map_err(|_negative| Errno::BADF)?,
        block_size: 0,
        info: LoopInfo {
            device_inode_rdevice_offset_sizelimit: [0; 5],
            number: 0,
            encryption: [0; 2],
            flags: if is_read_only { READ_ONLY | AUTOCLEAR } else { AUTOCLEAR },
            names_and_key: [[0; 32]; 5],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    #[expect(unsafe_code, reason = "there is no wrapper of this request that is kept up")]
    // SAFETY: LOOP_CONFIGURE reads one `struct loop_config`, whose layout `LoopConfig` has.
    unsafe {
        ioctl(device, Setter::<LOOP_CONFIGURE, _>::new(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mounts::unmount_below;
    use std::mem::size_of;
    use std::process::Command;
    use std::time::{Duration, Instant};

    fn image(folder: &Path) -> std::path::PathBuf {
        let image = folder.join("disk.img");
        File::create(&image).and_then(|file| file.set_len(16 << 20)).expect("an image");
        let made = Command::new("mkfs.ext4").args(["-q", "-F", "-O", "^has_journal"]).arg(&image).status();
        assert!(made.expect("mkfs.ext4").success());
        image
    }

    /// The kernel lets go some time after the unmount has returned.
    fn until_let_go_of(image: &Path) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while is_held(image).expect("is there") {
            assert!(Instant::now() < deadline, "a loop device still holds the image");
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_structures_are_as_long_as_the_kernels() {
        assert_eq!((size_of::<LoopInfo>(), size_of::<LoopConfig>()), (232, 304));
    }

    #[test]
    fn an_image_is_mounted_and_let_go_of_by_itself() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let (image, at) = (image(folder.path()), folder.path().join("at"));
        fs::create_dir(&at).expect("a folder");
        mount(&image, &at, false).expect("mounts");
        fs::write(at.join("kept"), "text").expect("writes");
        assert!(is_held(&image).expect("is there"));
        unmount_below(&at, None).expect("unmounts");
        until_let_go_of(&image);
        mount(&image, &at, true).expect("mounts again");
        assert_eq!(fs::read_to_string(at.join("kept")).expect("reads"), "text");
        let refused = fs::write(at.join("more"), "").expect_err("read only");
        assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
        unmount_below(&at, None).expect("unmounts");
        until_let_go_of(&image);
    }

    #[test]
    fn what_is_no_file_system_leaves_no_device_behind() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let (image, at) = (folder.path().join("disk.img"), folder.path().join("at"));
        fs::create_dir(&at).expect("a folder");
        fs::write(&image, vec![0; 1 << 20]).expect("an image");
        mount(&image, &at, false).expect_err("it is no file system");
        until_let_go_of(&image);
    }
}
