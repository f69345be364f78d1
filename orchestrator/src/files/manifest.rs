// SPDX-License-Identifier: Apache-2.0
//! What a sandbox was given, so that on the way back its changes can be told from those of others.

use super::private_folder;
use postern_common::id::SandboxId;
use rustix::fs::Stat;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// The longest manifest that is read: 200,000 names of 255 bytes and some.
const MANIFEST_BYTES: u64 = 128 << 20;

/// What a file was when it was carried in: enough to see that it changed, on either side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    size: u64,
    slot_nanos: i128,
    store_nanos: i128,
}

impl Stamp {
    pub(super) fn of(in_slot: &Stat, in_store: &Stat) -> Self {
        Self { size: size(in_store), slot_nanos: changed_nanos(in_slot), store_nanos: nanos(in_store) }
    }

    /// Whether the sandbox left it as it was given.
    pub(super) fn is_in_slot(&self, about: &Stat) -> bool {
        self.size == size(about) && self.slot_nanos == changed_nanos(about)
    }

    /// Whether the store still has what was given out.
    pub(super) fn is_in_store(&self, about: &Stat) -> bool {
        self.size == size(about) && self.store_nanos == nanos(about)
    }
}

/// The files that were carried into a sandbox, by path.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) files: BTreeMap<String, Stamp>,
}

/// Where a sandbox's manifest lies: under one name until its files were kept, then under another,
/// so that keeping them again finds what to compare with and knows that nothing need be there.
#[derive(Debug, Clone)]
pub(super) struct Places {
    given: PathBuf,
    kept: PathBuf,
}

impl Places {
    pub(super) fn of(folder: &Path, sandbox: &SandboxId) -> Self {
        Self { given: folder.join(format!("{sandbox}.json")), kept: folder.join(format!("{sandbox}.kept")) }
    }

    /// Whether files were carried in and have not been kept since.
    pub(super) fn is_owed(&self) -> bool {
        self.given.exists() && !self.kept.exists()
    }

    /// What was given; nothing if nothing was carried in.
    pub(super) fn read(&self) -> io::Result<Manifest> {
        for path in [&self.given, &self.kept] {
            match File::open(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => {
                    let mut text = String::new();
                    opened?.take(MANIFEST_BYTES).read_to_string(&mut text)?;
                    return serde_json::from_str(&text).map_err(io::Error::other);
                }
            }
        }
        Ok(Manifest::default())
    }

    /// Writes it so that it is there, whole, after any crash.
    pub(super) fn write(&self, manifest: &Manifest) -> io::Result<()> {
        let folder = self.given.parent().unwrap_or(Path::new("/"));
        private_folder(folder)?;
        let draft = self.given.with_extension("draft");
        let mut file = File::create(&draft)?;
        file.write_all(&serde_json::to_vec(manifest).map_err(io::Error::other)?)?;
        file.sync_all()?;
        fs::rename(draft, &self.given)?;
        File::open(folder)?.sync_all()
    }

    /// Notes that the files were kept.
    pub(super) fn note_kept(&self) -> io::Result<()> {
        match fs::rename(&self.given, &self.kept) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            renamed => renamed,
        }
    }

    /// Undoes [`Places::note_kept`].
    pub(super) fn note_owed(&self) -> io::Result<()> {
        match fs::rename(&self.kept, &self.given) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            renamed => renamed,
        }
    }

    /// Removes it; nothing there is what is wanted.
    pub(super) fn forget(&self) {
        for path in [&self.given, &self.kept] {
            let _ = fs::remove_file(path).is_ok();
        }
    }
}

pub(super) fn size(about: &Stat) -> u64 {
    u64::try_from(about.st_size).unwrap_or(0)
}

/// When the inode last changed: unlike the time of modification, the agent cannot set it.
fn changed_nanos(about: &Stat) -> i128 {
    i128::from(about.st_ctime) * 1_000_000_000 + i128::from(about.st_ctime_nsec)
}

fn nanos(about: &Stat) -> i128 {
    i128::from(about.st_mtime) * 1_000_000_000 + i128::from(about.st_mtime_nsec)
}
