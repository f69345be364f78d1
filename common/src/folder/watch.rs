// SPDX-License-Identifier: Apache-2.0
//! Watches the configuration folder and says when it may have changed.
//!
//! Editors write beside and rename, or write in steps; deployments swap links. So the answer is
//! only "look again, it has been quiet for a moment"; what is there is then read whole.

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc::{self, Receiver};
use tokio::time::timeout;

/// Quiet for this long counts as saved: longer than the steps of one save, too short to notice.
const QUIET: Duration = Duration::from_millis(50);
/// A folder that never comes to rest is read after this many steps all the same.
const MAX_STEPS: usize = 40;

/// Tells of changes in one folder, as long as it lives.
#[derive(Debug)]
pub struct Watch {
    changes: Receiver<()>,
    // Held because dropping it ends the watch.
    _watcher: RecommendedWatcher,
}

/// Changes of a folder cannot be noticed.
#[derive(Debug, thiserror::Error)]
#[error("`{}` cannot be watched; is it a folder?", path.display())]
pub struct Unwatchable {
    path: PathBuf,
    source: notify::Error,
}

impl Watch {
    /// Watches `folder` and all below it.
    ///
    /// # Errors
    /// [`Unwatchable`].
    pub fn new(folder: &Path) -> Result<Self, Unwatchable> {
        let unwatchable = |source| Unwatchable { path: folder.to_owned(), source };
        // One pending notice says all that there is to say; more are dropped.
        let (notice, changes) = mpsc::channel(1);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // A lost event (`Err`, `need_rescan`) is a reason to look, a mere read is none.
            let is_read = event.is_ok_and(|event| matches!(event.kind, EventKind::Access(_)));
            if !is_read && notice.try_send(()).is_err() {
                // One is pending already, or nobody listens any more.
            }
        })
        .map_err(unwatchable)?;
        watcher.watch(folder, RecursiveMode::Recursive).map_err(unwatchable)?;
        Ok(Self { changes, _watcher: watcher })
    }

    /// Waits for a change and then for quiet. Cancel-safe: a notice is lost only with the wait
    /// for quiet after it, so poll this to its end or in a loop that reads the folder at its start.
    pub async fn changed(&mut self) {
        if self.changes.recv().await.is_none() {
            return std::future::pending().await;
        }
        for _ in 0..MAX_STEPS {
            if timeout(QUIET, self.changes.recv()).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const DEADLINE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn every_way_to_save_is_noticed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("policies");
        fs::create_dir(&path).expect("makes it");
        let file = path.join("desk.cedar");
        let ways: [(&str, &dyn Fn()); 4] = [
            ("made", &|| fs::write(&file, "a").expect("writes")),
            ("written over", &|| fs::write(&file, "b").expect("writes")),
            ("renamed over", &|| {
                fs::write(path.join(".new"), "c").expect("writes");
                fs::rename(path.join(".new"), &file).expect("renames");
            }),
            ("removed", &|| fs::remove_file(&file).expect("removes")),
        ];
        let mut watch = Watch::new(folder.path()).expect("watches");
        for (way, act) in ways {
            act();
            timeout(DEADLINE, watch.changed()).await.unwrap_or_else(|_| panic!("{way}"));
        }
    }

    #[tokio::test]
    async fn a_folder_made_later_is_watched_too() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut watch = Watch::new(folder.path()).expect("watches");
        let later = folder.path().join("filters");
        fs::create_dir(&later).expect("makes it");
        timeout(DEADLINE, watch.changed()).await.expect("is noticed");
        fs::write(later.join("a"), "a").expect("writes");
        timeout(DEADLINE, watch.changed()).await.expect("is noticed");
    }

    #[test]
    fn what_is_not_there_is_named() {
        let told = Watch::new(Path::new("/nowhere/at/all")).expect_err("is not there").to_string();
        assert!(told.contains("/nowhere/at/all"), "{told}");
    }
}
