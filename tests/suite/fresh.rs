// SPDX-License-Identifier: Apache-2.0
//! `scripts/fresh.sh`, with which every build begins: of a tree that is not the one that was built last, each
//! file is newer than what was built, however old it is. Cargo itself is not part of it.

use crate::running::{leave_out, project};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

/// What a tree is made of, with names that a shell could take for something else.
const NAMES: [&str; 4] = ["-first.rs", "Cargo.toml", "src/a quote's \"\\n\".rs", "src/with space.rs"];

/// Before anything was built.
fn old() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)
}

/// Writes a file that is as old as that.
fn write(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().expect("is in a folder")).expect("makes it");
    fs::write(path, content).expect("writes");
    File::options().append(true).open(path).expect("opens").set_modified(old()).expect("is ours");
}

/// A clone, beside the folder that it builds into, which is not there yet.
fn tree(folder: &Path, name: &str) -> PathBuf {
    let tree = folder.join(name);
    for name in NAMES.into_iter().chain(["src/two\nlines.rs"]) {
        write(&tree.join(name), name);
    }
    tree
}

/// Begins a build; what is said of it.
fn begin(tree: &Path) -> String {
    let mut command = Command::new(project().join("scripts/fresh.sh"));
    for variable in ["GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"] {
        command.env_remove(variable);
    }
    let target = tree.parent().expect("is in a folder").join("target");
    let output = command.current_dir(tree).env("CARGO_TARGET_DIR", target).output().expect("bash starts");
    let said = String::from_utf8([output.stdout, output.stderr].concat()).expect("is text");
    assert!(output.status.success(), "{said}");
    said
}

/// Which of these files cargo would build again; they are as old as before then.
fn touched<'name>(tree: &Path, names: &[&'name str]) -> Vec<&'name str> {
    let is_newer = |name: &str| {
        let file = File::options().append(true).open(tree.join(name)).expect("opens");
        let modified = file.metadata().expect("is there").modified().expect("is known");
        file.set_modified(old()).expect("is ours");
        modified > old()
    };
    names.iter().copied().filter(|name| is_newer(name)).collect()
}

#[test]
fn what_is_as_it_was_built_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let tree = tree(folder.path(), "clone");
    for _build in 0..2 {
        assert_eq!(begin(&tree), "");
        assert_eq!(touched(&tree, &NAMES), [""; 0]);
    }
}

#[test]
fn another_content_is_newer_than_what_was_built_however_old_its_file_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let tree = tree(folder.path(), "clone");
    begin(&tree);
    for changed in NAMES {
        for content in ["of another commit", changed] {
            write(&tree.join(changed), content);
            assert_eq!(begin(&tree), "setup: 1 files are newer than what was built\n");
            assert_eq!(touched(&tree, &NAMES), [changed]);
        }
    }
    write(&tree.join("src/new.rs"), "was not there");
    begin(&tree);
    assert_eq!(touched(&tree, &["src/new.rs", "Cargo.toml"]), ["src/new.rs"]);
}

#[test]
fn all_of_another_clone_is_newer_and_so_it_is_where_nobody_knows_what_was_built() {
    let folder = tempfile::tempdir().expect("a folder");
    let [first, second] = ["first", "second"].map(|name| tree(folder.path(), name));
    begin(&first);
    for tree in [&second, &first] {
        assert_eq!(begin(tree), "setup: 4 files are newer than what was built\n");
        assert_eq!(touched(tree, &NAMES), NAMES);
        assert_eq!(begin(tree), "", "the control: it is known now");
    }
    fs::remove_file(folder.path().join("target/.sources")).expect("was written");
    begin(&first);
    assert_eq!(touched(&first, &NAMES), NAMES);
}

#[test]
fn git_tells_what_belongs_to_a_tree() {
    let folder = tempfile::tempdir().expect("a folder");
    let tree = tree(folder.path(), "clone");
    let git = |arguments: &[&str]| {
        let git = Command::new("git").arg("-C").arg(&tree).args(arguments).status();
        git.is_ok_and(|status| status.success())
    };
    if !git(&["init", "--quiet"]) {
        return leave_out("git is not installed (`scripts/setup.sh test` does so)");
    }
    for name in ["added.rs", "made/large.bin", "removed.rs"] {
        write(&tree.join(name), name);
    }
    write(&tree.join(".gitignore"), "made/\n");
    assert!(git(&["add", "added.rs", "removed.rs"]));
    fs::remove_file(tree.join("removed.rs")).expect("was there");
    fs::create_dir(folder.path().join("target")).expect("makes it");
    // The four, the one added, and `.gitignore`.
    assert_eq!(begin(&tree), "setup: 6 files are newer than what was built\n");
    assert_eq!(touched(&tree, &["Cargo.toml", "added.rs", "made/large.bin"]), ["Cargo.toml", "added.rs"]);
}
