// SPDX-License-Identifier: Apache-2.0
//! What every program of ours does at its start and its end.

use std::io;
use std::path::{Path, PathBuf};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The settings file that is read unless another is named.
const SETTINGS_FILE: &str = "postern.toml";

/// A settings file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("settings `{}` cannot be read: {source}", path.display())]
pub struct UnreadableSettings {
    path: PathBuf,
    source: io::Error,
}

/// The settings file and what it says: the one that is `given`, which must be there, else
/// `./postern.toml`, which need not be.
///
/// # Errors
/// [`UnreadableSettings`].
pub fn settings_file(given: Option<&Path>) -> Result<Option<(PathBuf, String)>, UnreadableSettings> {
    let path = given.unwrap_or(Path::new(SETTINGS_FILE)).to_owned();
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some((path, text))),
        Err(error) if given.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(UnreadableSettings { path, source }),
    }
}

/// Ctrl-C or SIGTERM. Both are caught from the start, so that neither skips what is done at the end.
#[derive(Debug)]
pub struct Ending {
    interrupt: Signal,
    terminate: Signal,
}

impl Ending {
    /// Begins to catch them. Call within a runtime.
    ///
    /// # Errors
    /// What the system says.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for the next of them.
    pub async fn come(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_named_must_be_there_and_the_usual_one_need_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("mine.toml");
        let told = settings_file(Some(&path)).expect_err("is not there").to_string();
        assert!(told.contains("mine.toml"), "{told}");
        std::fs::write(&path, "tenant = \"acme\"\n").expect("writes");
        assert_eq!(settings_file(Some(&path)).expect("reads").map(|(_, text)| text.len()), Some(16));
        assert!(settings_file(None).expect("need not be there").is_none());
    }
}
