// SPDX-License-Identifier: Apache-2.0
//! Blank ext4 images. `mkfs` takes longer than all the rest of a start, and every blank of one
//! size is alike, so the first of a size is kept beside the slots and copied from then on.

use super::run;
use rustix::fs::{SeekFrom as Position, seek};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Sizes of which a blank is kept, of some 150 KiB on disk each; others are made every time.
const KEPT_SIZES: usize = 32;
const PREFIX: &str = "blank-";

/// Makes a blank image of `bytes` at `to`, which lies in `slot`.
///
/// Shims that do this at the same time each make a blank; the last one's is kept.
pub(super) fn copy(slot: &Path, bytes: u64, to: &Path) -> io::Result<()> {
    let kept = kept(slot, bytes);
    if let Some(kept) = &kept
        && copy_written(kept, to).is_ok()
    {
        return Ok(());
    }
    make(to, bytes)?;
    if let Some(kept) = kept.filter(|kept| has_room(kept)) {
        let draft = slot.join("blank.draft");
        // On the disk before it has its name: one that is half there after a crash of the machine would be
        // copied ever after. Without it the next start is slower, no more.
        let written = copy_written(to, &draft).and_then(|()| File::open(&draft)?.sync_all());
        drop(written.and_then(|()| fs::rename(&draft, kept)));
    }
    Ok(())
}

/// Where the blank of a size is kept.
fn kept(slot: &Path, bytes: u64) -> Option<PathBuf> {
    slot.parent().map(|slots| slots.join(format!("{PREFIX}{bytes}.img")))
}

/// Removes the blank of a size that is kept, for a copy of it was no file system; whether there was one.
pub(super) fn forget(slot: &Path, bytes: u64) -> bool {
    kept(slot, bytes).is_some_and(|kept| fs::remove_file(kept).is_ok())
}

fn make(image: &Path, bytes: u64) -> io::Result<()> {
    File::create(image)?.set_len(bytes)?;
    // No journal: what a crash of the machine leaves is not believed (`torn.rs`). No reserve for root.
    let options = ["-q", "-F", "-m", "0", "-O", "^has_journal,^resize_inode"];
    let extended = ["-E", "nodiscard,lazy_itable_init=1"];
    run(Command::new("mkfs.ext4").args(options).args(extended).arg(image))
}

fn has_room(kept: &Path) -> bool {
    let names = kept.parent().and_then(|slots| fs::read_dir(slots).ok()).into_iter().flatten().flatten();
    let blanks =
        names.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX)));
    blanks.count() < KEPT_SIZES
}

/// Copies what was ever written of a sparse file; holes stay holes.
fn copy_written(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let mut target = File::create(to)?;
    target.set_len(source.metadata()?.len())?;
    let mut end = 0;
    loop {
        let start = match seek(&source, Position::Data(end)) {
            Err(Errno::NXIO) => return Ok(()),
            found => found?,
        };
        end = seek(&source, Position::Hole(start))?;
        source.seek(SeekFrom::Start(start))?;
        target.seek(SeekFrom::Start(start))?;
        io::copy(&mut (&source).take(end.saturating_sub(start)), &mut target)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    const SIZE: u64 = 64 << 20;

    #[test]
    fn a_copied_blank_is_a_whole_file_system_and_still_sparse() {
        let slots = tempfile::tempdir().expect("a folder");
        let images: Vec<PathBuf> = ["a", "b"]
            .iter()
            .map(|name| {
                let slot = slots.path().join(name);
                fs::create_dir(&slot).expect("ours");
                let image = slot.join("disk.img");
                copy(&slot, SIZE, &image).expect("makes a blank");
                image
            })
            .collect();
        let kept = slots.path().join(format!("{PREFIX}{SIZE}.img"));
        assert!(kept.is_file(), "the first was kept");
        let bytes = fs::read(&kept).expect("reads");
        for image in &images {
            assert_eq!(fs::read(image).expect("reads"), bytes);
            let found = fs::metadata(image).expect("there");
            assert!(found.blocks() * 512 < SIZE / 16, "{} blocks", found.blocks());
            run(Command::new("e2fsck").args(["-f", "-n"]).arg(image)).expect("nothing is wrong with it");
        }
    }

    #[test]
    fn another_size_is_another_blank_and_not_every_size_is_kept() {
        let slots = tempfile::tempdir().expect("a folder");
        let slot = slots.path().join("slot");
        fs::create_dir(&slot).expect("ours");
        for number in 0..KEPT_SIZES {
            fs::write(slots.path().join(format!("{PREFIX}{number}.img")), "").expect("ours");
        }
        let image = slot.join("disk.img");
        copy(&slot, SIZE, &image).expect("makes a blank");
        assert_eq!(fs::metadata(&image).expect("there").len(), SIZE);
        assert!(!slots.path().join(format!("{PREFIX}{SIZE}.img")).exists());
    }
}
