// SPDX-License-Identifier: Apache-2.0
//! One `up` for one data folder: a lock that dies with its process, so that nothing has to be
//! removed by hand after a crash.

use crate::failure::Failure;
use anyhow::{Context as _, anyhow};
use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// The data folder, ours alone while this lives.
#[derive(Debug)]
pub(crate) struct DataFolder {
    path: PathBuf,
    // Held for its lock, which the kernel drops with the process.
    _lock: File,
}

impl DataFolder {
    /// Makes the folder if need be (0700), and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let shown = path.display();
        DirBuilder::new().recursive(true).mode(0o700).create(path).with_context(|| {
            format!("the data folder `{shown}` cannot be made; choose another with --data-dir")
        })?;
        let path =
            path.canonicalize().with_context(|| format!("the data folder `{shown}` cannot be found"))?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o700)).with_context(|| {
            format!("the data folder `{shown}` is not ours; choose another with --data-dir")
        })?;
        let file = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&file)
            .with_context(|| format!("`{}` cannot be opened", file.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(taken(&path, &mut lock)),
            Err(TryLockError::Error(error)) => {
                return Err(anyhow::Error::new(error)
                    .context(format!("`{}` cannot be locked", file.display()))
                    .into());
            }
        }
        lock.set_len(0)?;
        lock.write_all(std::process::id().to_string().as_bytes())?;
        Ok(Self { path, _lock: lock })
    }

    /// Where it is, from the root.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file of the folder (0600), whole or not at all.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<PathBuf, Failure> {
        let path = self.path.join(name);
        let beside = self.path.join(format!(".{name}.new"));
        let written = || {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&beside, &path)
        };
        written().with_context(|| format!("`{}` cannot be written", path.display()))?;
        Ok(path)
    }

    /// Removes a file of the folder; one that is not there is fine.
    pub(crate) fn remove(&self, name: &str) -> Result<(), Failure> {
        match std::fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

fn taken(path: &Path, lock: &mut File) -> Failure {
    let mut owner = String::new();
    // The owner's number is for the message only; without it the refusal stands.
    drop(lock.rewind().and_then(|()| lock.take(20).read_to_string(&mut owner)));
    let owner = if owner.is_empty() { "another process".to_owned() } else { format!("process {owner}") };
    let path = path.display();
    Failure::Failed(anyhow!(
        "{owner} runs `postern up` on `{path}`; stop it, or choose another folder with --data-dir"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).expect("is there").permissions().mode() & 0o777
    }

    #[test]
    fn the_second_up_on_a_folder_is_refused_with_the_firsts_pid() {
        let parent = tempfile::tempdir().expect("a folder");
        let path = parent.path().join("data");
        let first = DataFolder::open(&path).expect("is free");
        let refused = DataFolder::open(&path).expect_err("is taken").to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        drop(first);
        DataFolder::open(&path).expect("is free again");
    }

    #[test]
    fn the_folder_and_its_files_are_for_their_owner_alone() {
        let parent = tempfile::tempdir().expect("a folder");
        let path = parent.path().join("data");
        std::fs::create_dir(&path).expect("makes it, open to all");
        let folder = DataFolder::open(&path).expect("opens");
        let key = folder.write("api-key", "secret").expect("writes");
        assert_eq!(
            (mode(folder.path()), mode(&key), mode(&folder.path().join("lock"))),
            (0o700, 0o600, 0o600)
        );
        folder.write("api-key", "other").expect("writes again");
        assert_eq!(std::fs::read_to_string(key).expect("reads"), "other");
    }
}
