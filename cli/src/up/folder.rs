// SPDX-License-Identifier: Apache-2.0
//! The watched configuration folder: what it said last, and where its backends are.

use super::watch::Watch;
use crate::failure::Failure;
use anyhow::Context as _;
use postern_common::folder::{self, FolderMistakes, TenantFiles};
use std::path::{Path, PathBuf};
use url::Url;

/// A folder, the watch on it, and what was last read from it.
#[derive(Debug)]
pub(crate) struct WatchedFolder {
    path: PathBuf,
    watch: Watch,
    files: TenantFiles,
}

impl WatchedFolder {
    /// Begins to watch and reads the folder once; its mistakes are the caller's to show.
    pub(crate) async fn open(path: &Path) -> Result<Self, Failure> {
        let path = path
            .canonicalize()
            .with_context(|| format!("the configuration folder `{}` is not there", path.display()))?;
        // Watched before it is read, so that no change falls in between.
        let watch = Watch::new(&path)?;
        let files = read(&path).await?.map_err(anyhow::Error::new)?;
        Ok(Self { path, watch, files })
    }

    /// Where it is, from the root.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What it last said.
    pub(crate) const fn files(&self) -> &TenantFiles {
        &self.files
    }

    /// Where its backends are.
    pub(crate) fn urls(&self) -> Vec<&Url> {
        self.files.backends.values().map(|backend| &backend.backend.url).collect()
    }

    /// Waits until it says something else, or something wrong.
    pub(crate) async fn changed(&mut self) -> Result<&TenantFiles, FolderMistakes> {
        loop {
            self.watch.changed().await;
            match read(&self.path).await {
                Ok(Ok(files)) if files == self.files => {}
                Ok(Ok(files)) => {
                    self.files = files;
                    return Ok(&self.files);
                }
                Ok(Err(mistakes)) => return Err(mistakes),
                // Reading was cancelled: this process is ending.
                Err(_) => return std::future::pending().await,
            }
        }
    }
}

/// Reads it whole, off the threads that serve.
async fn read(path: &Path) -> Result<Result<TenantFiles, FolderMistakes>, Failure> {
    let path = path.to_owned();
    let reading = tokio::task::spawn_blocking(move || folder::read(&path)).await;
    Ok(reading.context("the configuration folder was not read to its end")?)
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
