// SPDX-License-Identifier: Apache-2.0
//! Whether what a slot holds may be something else than what was written to it.
//!
//! When a machine loses its power, blocks that were written later may be on its disk and earlier ones
//! not, twice over: those of the file system in the image, which has no journal, and those of the image
//! on the machine's own file system. A folder may then lack files that a log beside it says are there.
//! So a slot remembers during which run of the machine it was made, and an image says itself whether it
//! was unmounted.
//!
//! ```text
//! note:  run of the machine ─ settled ─▶ settled ─ woken ─▶ run of the machine
//!                └────────── cut off ──▶ torn ── believed ──────────▲
//! ```
//! A slot that was settled, as that of a stopped sandbox is, has lost nothing whatever the machine does. One
//! that is torn stays so until the orchestrator has compared it with the store.

use super::IMAGE;
use crate::mounts::is_mounted;
use rustix::fs::StatVfsMountFlags;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// The note in a slot.
const RUN: &str = "run";
/// It says that all of the slot is on the machine's disk, and that nothing is written to it.
const SETTLED: &[u8] = b"settled\n";
/// It says what no run of the machine is called.
const TORN: &[u8] = b"torn\n";
/// Another after each start of the machine (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Where `s_state` lies in an ext4 image: byte 0x3A of the superblock, which begins at 1024.
const STATE_AT: u64 = 1024 + 0x3A;
/// `s_state`: it was unmounted.
const UNMOUNTED: u16 = 1;
/// `s_state`: writes of it failed, as on a disk that was full.
const HAS_ERRORS: u16 = 2;

/// Notes in a slot that is made now during which run of the machine that is.
///
/// It need not come to the disk before anything else does: without it the slot counts as torn after a
/// start of the machine, which is what it is for.
pub(super) fn note_run(slot: &Path) -> io::Result<()> {
    match File::create_new(slot.join(RUN)) {
        // What was noted first counts: only then was nothing there.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        made => made?.write_all(&fs::read(BOOT_ID)?),
    }
}

/// Notes that all of a slot is on the disk; it is noted there when this returns.
pub(super) fn note_settled(slot: &Path) -> io::Result<()> {
    note(slot, SETTLED)
}

/// Whether it was noted that all of a slot is on the disk, and nothing was written to it since.
pub(super) fn is_settled(slot: &Path) -> io::Result<bool> {
    Ok(noted(slot)?.as_deref() == Some(SETTLED))
}

/// Notes, before anything is written to a slot that was made before and is not shown to be written, that this
/// run of the machine does so, or that what is there is torn; whether its image is whole.
///
/// INVARIANT: on the disk before the first write is. Else a slot that is cut off then would count as settled.
pub(super) fn begin_again(slot: &Path) -> io::Result<bool> {
    let image = slot.join(IMAGE);
    let is_whole = !image.is_file() || is_whole(&image)?;
    match noted(slot)? {
        Some(noted) if is_whole && noted == SETTLED => note(slot, &fs::read(BOOT_ID)?)?,
        Some(_) if is_whole => {}
        _ => note(slot, TORN)?,
    }
    Ok(is_whole)
}

/// Notes that what a slot holds now is its sandbox's doing: it was compared with the store.
///
/// # Errors
/// If it cannot be noted.
pub fn believe(slot: &Path) -> io::Result<()> {
    note(slot, &fs::read(BOOT_ID)?)
}

fn noted(slot: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(slot.join(RUN)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// Replaces the note; it is on the disk when this returns.
fn note(slot: &Path, text: &[u8]) -> io::Result<()> {
    let draft = slot.join("run.draft");
    let mut file = File::create(&draft)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&draft, slot.join(RUN))?;
    File::open(slot)?.sync_all()
}

/// Whether a slot is shown at `at` to be written. No mount outlives the run of the machine that it was made in.
pub(super) fn is_live(at: &Path) -> io::Result<bool> {
    Ok(is_mounted(at) && !rustix::fs::statvfs(at)?.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// Whether a slot, which is shown at `at` if it is shown at all, may have lost writes, so that nothing
/// that is missing or differs there is believed to be its sandbox's doing.
///
/// # Errors
/// If the machine cannot say.
pub fn is_torn(slot: &Path, at: &Path) -> io::Result<bool> {
    let (is_live, image) = (is_live(at)?, slot.join(IMAGE));
    Ok(is_of_another_run(slot, is_live)? || (!is_live && image.is_file() && !is_whole(&image)?))
}

/// Whether a slot was written in another run of the machine, and not settled then.
pub(super) fn is_of_another_run(slot: &Path, is_live: bool) -> io::Result<bool> {
    match noted(slot)? {
        Some(noted) => Ok(noted != SETTLED && noted != fs::read(BOOT_ID)?),
        // It was made before slots had notes.
        None => Ok(!is_live),
    }
}

/// Whether an image that is not mounted to be written says that it was unmounted, and nothing failed.
pub(super) fn is_whole(image: &Path) -> io::Result<bool> {
    let mut state = [0; 2];
    File::open(image)?.read_exact_at(&mut state, STATE_AT)?;
    let state = u16::from_le_bytes(state);
    Ok(state & UNMOUNTED != 0 && state & HAS_ERRORS == 0)
}

#[cfg(test)]
mod tests {
    use super::super::{attach, blank};
    use super::*;
    use crate::mounts::unmount_below;
    use std::path::PathBuf;

    fn slot(folder: &Path) -> (PathBuf, PathBuf) {
        let (slot, at) = (folder.join("slots/one"), folder.join("at"));
        fs::create_dir_all(&slot).expect("a folder");
        fs::create_dir(&at).expect("a folder");
        (slot, at)
    }

    #[test]
    fn a_slot_of_another_run_of_the_machine_is_torn() {
        let folder = tempfile::tempdir().expect("a folder");
        let (slot, at) = slot(folder.path());
        assert!(is_torn(&slot, &at).expect("answers"), "nothing says when it was made");
        note_run(&slot).expect("notes");
        assert!(!is_torn(&slot, &at).expect("answers"));
        for other in ["", "another\n"] {
            fs::write(slot.join(RUN), other).expect("writes");
            note_run(&slot).expect("what was noted stays");
            assert!(is_torn(&slot, &at).expect("answers"), "{other:?}");
        }
    }

    #[test]
    fn an_image_that_was_not_unmounted_or_had_errors_is_torn() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let (slot, at) = slot(folder.path());
        note_run(&slot).expect("notes");
        let image = slot.join(IMAGE);
        blank::copy(&slot, 16 << 20, &image).expect("a blank");
        attach::mount(&image, &at, false).expect("mounts");
        assert!(!is_torn(&slot, &at).expect("answers"), "what is mounted is as it was written");
        // What a disk has of it when the power goes.
        rustix::fs::syncfs(File::open(&at).expect("opens")).expect("comes to the disk");
        fs::copy(&image, slot.join("cut.img")).expect("copies");
        unmount_below(&at, None).expect("unmounts");
        assert!(!is_torn(&slot, &at).expect("answers"), "it was unmounted");
        fs::rename(slot.join("cut.img"), &image).expect("takes its place");
        assert!(is_torn(&slot, &at).expect("answers"));
        attach::mount(&image, &at, true).expect("is shown");
        assert!(is_torn(&slot, &at).expect("answers"), "also while it is shown to be read");
        unmount_below(&at, None).expect("unmounts");
        let file = File::options().write(true).open(&image).expect("opens");
        for (state, is_so) in [(UNMOUNTED, false), (UNMOUNTED | HAS_ERRORS, true), (0, true)] {
            file.write_all_at(&state.to_le_bytes(), STATE_AT).expect("writes");
            assert_eq!(is_torn(&slot, &at).expect("answers"), is_so, "{state}");
        }
    }
}
