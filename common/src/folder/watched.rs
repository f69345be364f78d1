// SPDX-License-Identifier: Apache-2.0
//! The watched configuration folder: what it said last, and where its backends are.

use super::watch::{Unwatchable, Watch};
use super::{DeniedFile, FolderMistakes, TenantFiles};
use std::io;
use std::path::{Path, PathBuf};
use url::Url;

/// A folder, the watch on it, and what was last read from it.
#[derive(Debug)]
pub struct WatchedFolder {
    path: PathBuf,
    watch: Watch,
    files: TenantFiles,
}

/// Why a folder cannot be begun with.
#[derive(Debug, thiserror::Error)]
pub enum OpenFolderError {
    /// There is none.
    #[error("the configuration folder `{}` is not there", path.display())]
    Absent {
        /// Where it should be.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Changes of it could not be noticed.
    #[error(transparent)]
    Watch(#[from] Unwatchable),
    /// What is wrong in it.
    #[error(transparent)]
    Mistakes(#[from] FolderMistakes),
    /// This process is ending.
    #[error("the configuration folder was not read to its end")]
    Ending,
}

impl WatchedFolder {
    /// Begins to watch and reads the folder once.
    ///
    /// # Errors
    /// [`OpenFolderError`]; mistakes are the caller's to show.
    pub async fn open(path: &Path) -> Result<Self, OpenFolderError> {
        let absent = |source| OpenFolderError::Absent { path: path.to_owned(), source };
        let path = path.canonicalize().map_err(absent)?;
        // Watched before it is read, so that no change falls in between.
        let watch = Watch::new(&path)?;
        let files = read(&path).await.ok_or(OpenFolderError::Ending)??;
        Ok(Self { path, watch, files })
    }

    /// Where it is, from the root.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it last said.
    #[must_use]
    pub const fn files(&self) -> &TenantFiles {
        &self.files
    }

    /// Where its backends are.
    #[must_use]
    pub fn urls(&self) -> Vec<&Url> {
        self.files.backends.values().map(|backend| &backend.backend.url).collect()
    }

    /// Forgets what it last said, so that the same again counts as a change.
    pub fn forget(&mut self) {
        self.files = TenantFiles::default();
    }

    /// Whom it denies now, whatever is wrong with the rest; `None` if that itself cannot be read.
    pub async fn denied(&self) -> Option<DeniedFile> {
        let path = self.path.clone();
        let reading = tokio::task::spawn_blocking(move || super::read::read_denied(&path)).await;
        reading.ok()?.ok()
    }

    /// Waits until it says something else, or something wrong.
    ///
    /// # Errors
    /// What is wrong in it; what it said before is kept.
    pub async fn changed(&mut self) -> Result<&TenantFiles, FolderMistakes> {
        loop {
            self.watch.changed().await;
            match read(&self.path).await {
                Some(Ok(files)) if files == self.files => {}
                Some(Ok(files)) => {
                    self.files = files;
                    return Ok(&self.files);
                }
                Some(Err(mistakes)) => return Err(mistakes),
                None => return std::future::pending().await,
            }
        }
    }
}

/// Reads it whole, off the threads that serve; `None` if this process is ending.
async fn read(path: &Path) -> Option<Result<TenantFiles, FolderMistakes>> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || super::read(&path)).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::Duration;
    use tokio::time::timeout;

    const DEADLINE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn changes_and_mistakes_are_told_and_the_last_good_files_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let limits = folder.path().join("limits.toml");
        fs::write(&limits, "[session]\nper_second = 5\n").expect("writes");
        let mut watched = WatchedFolder::open(folder.path()).await.expect("opens");
        let first = watched.files().clone();
        fs::write(&limits, "[session]\nper_second = 5\nburts = 1\n").expect("writes");
        let told = timeout(DEADLINE, watched.changed()).await.expect("is noticed").expect_err("is wrong");
        assert!(told.to_string().contains("limits.toml:3"), "{told}");
        assert_eq!(*watched.files(), first);
        fs::write(&limits, "[session]\nper_second = 6\n").expect("writes");
        let files = timeout(DEADLINE, watched.changed()).await.expect("is noticed").expect("is right");
        assert_eq!(files.limits.session.map(|rate| rate.per_second), Some(6.0));
    }

    #[tokio::test]
    async fn a_folder_that_is_not_there_is_named() {
        let refused = WatchedFolder::open(Path::new("/nowhere")).await.expect_err("is not there").to_string();
        assert!(refused.contains("`/nowhere`"), "{refused}");
    }
}
