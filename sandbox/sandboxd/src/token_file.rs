// SPDX-License-Identifier: Apache-2.0
//! The session's token as a file, where a template asks for one (`SANDBOX_TOKEN_FILE`).
//!
//! The agent may read the file, and do with its place what it likes: it has the rights that this process has.
//! So what fails here fails for the agent alone; the door has its token all the same.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The variable that says where; the agent's processes have it too.
pub(crate) const VARIABLE: &str = "SANDBOX_TOKEN_FILE";
/// Its owner reads it: the agent.
const MODE: u32 = 0o600;

/// Puts a token in the place of the one before. Whoever reads meanwhile gets the one or the other, whole.
///
/// # Errors
/// If it could not be written; then there is none, and never an old one.
pub(crate) fn replace(path: &Path, token: &str) -> io::Result<()> {
    let written = write(path, token);
    if written.is_err() {
        remove(path);
    }
    written
}

fn write(path: &Path, token: &str) -> io::Result<()> {
    let draft = draft(path);
    remove(&draft);
    // A new file, never what a link leads to.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&draft)?;
    let placed = file.write_all(token.as_bytes()).and_then(|()| fs::rename(&draft, path));
    if placed.is_err() {
        remove(&draft);
    }
    placed
}

/// Takes the token away.
pub(crate) fn remove(path: &Path) {
    // There may be none.
    let _ = fs::remove_file(path).is_ok();
}

fn draft(path: &Path) -> PathBuf {
    path.with_extension("next")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn a_token_replaces_the_one_before_and_is_read_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        replace(&path, "one").expect("is written");
        let mut opened = fs::File::open(&path).expect("is there");
        replace(&path, "two").expect("is written");
        assert_eq!(fs::read_to_string(&path).expect("is there"), "two");
        assert_eq!(
            io::read_to_string(&mut opened).expect("is read"),
            "one",
            "another file, not this one anew"
        );
        assert_eq!(fs::metadata(&path).expect("is there").permissions().mode() & 0o777, MODE);
        remove(&path);
        assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 0, "nor is a draft left");
    }

    #[test]
    fn no_link_is_gone_through_and_what_cannot_be_written_leaves_no_old_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, other) = (folder.path().join("token"), folder.path().join("other"));
        fs::write(&other, "mine").expect("writes");
        symlink(&other, &path).expect("links");
        symlink(&other, draft(&path)).expect("links");
        replace(&path, "one").expect("is written");
        assert_eq!(fs::read_to_string(&other).expect("is there"), "mine");
        assert_eq!(fs::read_to_string(&path).expect("is there"), "one");
        // Where the draft cannot be made, what was there goes.
        fs::create_dir(draft(&path)).expect("makes");
        assert!(replace(&path, "two").is_err());
        assert!(!path.exists(), "an old token is none");
    }
}
