// SPDX-License-Identifier: Apache-2.0
//! The folder of compiled filters: written whole or not at all, and kept within bounds.
//!
//! A file is named after its component and its engine. What filters in force are made of stays,
//! and what they could go back to, while there is room; the rest is somebody's trial, and goes
//! after an hour. Dropping too much costs a compilation, never a filter.

use postern_filter_engine::{Digest, Fingerprint};
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A component that no filter is made of was compiled to be judged: whoever asked puts it soon.
const TRIAL_TIME: Duration = Duration::from_secs(3600);
/// What may be kept to go back to, all tenants together: some 10,000 first-party filters.
const MOST_BYTES: u64 = 4 << 30;

/// The components that filters are made of, by their digests in hex.
#[derive(Debug, Clone, Default)]
pub(crate) struct Used {
    /// Those in force: they are kept whatever room they take.
    pub(crate) in_force: BTreeSet<String>,
    /// Those that can be put in force, or gone back to.
    pub(crate) kept: BTreeSet<String>,
}

/// What [`trim`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Trimmed {
    /// Files that are gone.
    pub(crate) dropped: usize,
    /// Bytes that are left.
    pub(crate) left_bytes: u64,
}

/// Where compiled code of a component for an engine is kept.
pub(super) fn file_name(component: Digest, engine: Fingerprint) -> String {
    format!("{component}-{engine}")
}

/// Writes a file whole or not at all.
pub(super) fn keep(folder: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let draft = path.with_extension(format!("draft-{}", postern_common::id::RequestId::generate()));
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(draft, path)
}

/// A file that may go if there is too little room, the oldest first.
struct Kept {
    path: PathBuf,
    bytes: u64,
    at: SystemTime,
}

pub(super) fn trim(
    folder: &Path,
    used: &Used,
    engines: &[Fingerprint],
    now: SystemTime,
) -> io::Result<Trimmed> {
    trim_to(folder, used, engines, now, MOST_BYTES)
}

fn trim_to(
    folder: &Path,
    used: &Used,
    engines: &[Fingerprint],
    now: SystemTime,
    most_bytes: u64,
) -> io::Result<Trimmed> {
    let (mut trimmed, mut spare) = (Trimmed::default(), Vec::new());
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(trimmed),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let about = match entry.metadata() {
            Ok(about) if about.is_file() => about,
            // Another orchestrator of this installation was faster; or none of ours.
            _ => continue,
        };
        let (name, path, at) = (entry.file_name(), entry.path(), about.modified().unwrap_or(now));
        let name = name.to_str().and_then(|name| name.split_once('-'));
        let (component, is_fitting) = name.map_or(("", false), |(component, engine)| {
            (component, engine.parse().is_ok_and(|engine| engines.contains(&engine)))
        });
        let is_old = now.duration_since(at).is_ok_and(|age| age > TRIAL_TIME);
        let is_kept = is_fitting && used.kept.contains(component);
        let is_in_force = is_fitting && used.in_force.contains(component);
        if is_old && !is_kept && !is_in_force {
            std::fs::remove_file(&path)?;
            trimmed.dropped += 1;
            continue;
        }
        trimmed.left_bytes = trimmed.left_bytes.saturating_add(about.len());
        if is_kept && !is_in_force {
            spare.push(Kept { path, bytes: about.len(), at });
        }
    }
    spare.sort_by_key(|kept| kept.at);
    for kept in spare {
        if trimmed.left_bytes <= most_bytes {
            break;
        }
        std::fs::remove_file(&kept.path)?;
        trimmed.dropped += 1;
        trimmed.left_bytes = trimmed.left_bytes.saturating_sub(kept.bytes);
    }
    Ok(trimmed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with a file of 100 bytes for each component, written an hour apart from the next.
    struct Folder {
        folder: tempfile::TempDir,
        now: SystemTime,
    }

    impl Folder {
        fn with(names: &[String]) -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
            for (hours, name) in (0_u64..).zip(names) {
                let path = folder.path().join(name);
                keep(folder.path(), &path, &[0; 100]).expect("writes");
                let file = std::fs::File::options().write(true).open(&path).expect("is there");
                file.set_modified(now - TRIAL_TIME * 2 * u32::try_from(hours).expect("few")).expect("sets");
            }
            Self { folder, now }
        }

        fn has(&self, name: &str) -> bool {
            self.folder.path().join(name).exists()
        }

        fn trim(&self, used: &Used, most_bytes: u64) -> Trimmed {
            trim_to(self.folder.path(), used, &[engine()], self.now, most_bytes).expect("trims")
        }
    }

    fn engine() -> Fingerprint {
        Fingerprint::of(b"ours")
    }

    fn of(component: &str) -> String {
        file_name(Digest::of(component.as_bytes()), engine())
    }

    fn digests(components: &[&str]) -> BTreeSet<String> {
        components.iter().map(|component| Digest::of(component.as_bytes()).to_string()).collect()
    }

    #[test]
    fn what_is_in_force_or_can_be_gone_back_to_stays_and_old_trials_go() {
        let foreign = file_name(Digest::of(b"live"), Fingerprint::of(b"another release"));
        let draft = format!("{}.draft-req", of("half"));
        let names =
            [of("fresh trial"), of("old trial"), of("live"), of("kept"), foreign.clone(), draft.clone()];
        let folder = Folder::with(&names);
        let used = Used { in_force: digests(&["live"]), kept: digests(&["live", "kept"]) };
        let trimmed = folder.trim(&used, MOST_BYTES);
        assert_eq!(trimmed, Trimmed { dropped: 3, left_bytes: 300 });
        assert!(folder.has(&of("fresh trial")) && folder.has(&of("live")) && folder.has(&of("kept")));
        assert!(!folder.has(&of("old trial")) && !folder.has(&foreign) && !folder.has(&draft));
        assert_eq!(folder.trim(&used, MOST_BYTES).dropped, 0, "again changes nothing");
    }

    #[test]
    fn without_room_the_oldest_that_is_not_in_force_goes_first() {
        let folder = Folder::with(&[of("newer"), of("older"), of("live")]);
        let used = Used { in_force: digests(&["live"]), kept: digests(&["newer", "older", "live"]) };
        assert_eq!(folder.trim(&used, 250), Trimmed { dropped: 1, left_bytes: 200 });
        assert!(!folder.has(&of("older")) && folder.has(&of("newer")));
        assert_eq!(folder.trim(&used, 0), Trimmed { dropped: 1, left_bytes: 100 });
        assert!(folder.has(&of("live")), "in force, whatever room it takes");
    }

    #[test]
    fn a_folder_that_was_never_made_holds_nothing() {
        let nowhere = tempfile::tempdir().expect("a folder").path().join("gone");
        let trimmed = trim(&nowhere, &Used::default(), &[], SystemTime::UNIX_EPOCH).expect("is nothing");
        assert_eq!(trimmed, Trimmed::default());
    }
}
