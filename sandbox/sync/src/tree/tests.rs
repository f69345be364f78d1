// SPDX-License-Identifier: Apache-2.0
use super::*;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A tree with its drafts beside it.
pub(crate) struct Bench {
    pub(crate) folder: TempDir,
    pub(crate) tree: Tree,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::within(tempfile::tempdir().expect("a folder"))
    }

    pub(crate) fn within(folder: TempDir) -> Self {
        fs::create_dir(folder.path().join("tree")).expect("makes");
        fs::create_dir(folder.path().join("drafts")).expect("makes");
        let at = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
        let tree = Tree::open(&at("tree"), &at("drafts")).expect("opens");
        Self { folder, tree }
    }

    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join("tree").join(path)
    }

    pub(crate) fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let at = self.at(path);
        fs::create_dir_all(at.parent().expect("below the tree")).expect("makes");
        fs::write(at, text).expect("writes");
    }

    fn drafts(&self) -> usize {
        fs::read_dir(self.folder.path().join("drafts")).expect("is there").count()
    }

    fn placed(&self, to: &str, text: &str, before: Option<&Stamp>) -> Placed {
        let (draft, _) = self.tree.draft("d".to_owned(), false).expect("makes");
        (&draft.file).write_all(text.as_bytes()).expect("writes");
        draft.place(&path(to), (0o640, 1_000_000_123), before).expect("is placed")
    }

    fn look(&self, at: &str) -> Seen {
        self.tree.look(&path(at)).expect("looks").expect("is there")
    }
}

pub(crate) fn path(text: &str) -> FilePath {
    FilePath::parse(text).expect("a path")
}

pub(crate) fn stamp(size: u64) -> Stamp {
    Stamp { size, modified: 1, changed: 2, inode: 3 }
}

fn text(at: &Path) -> String {
    fs::read_to_string(at).expect("reads")
}

#[test]
fn a_draft_gets_its_place_whole_with_mode_and_time_and_its_folders() {
    let bench = Bench::new();
    let Placed::Here(seen) = bench.placed("a/b/c", "new", None) else { panic!("is free") };
    let about = fs::metadata(bench.at("a/b/c")).expect("is there");
    assert_eq!((about.permissions().mode() & 0o777, about.mtime(), seen.mode), (0o640, 1000, 0o640));
    assert_eq!(seen.stamp, bench.look("a/b/c").stamp);
    assert_eq!(seen.modified_micros(), 1_000_000_123);
    assert_eq!(bench.drafts(), 0);
    let (draft, _) = bench.tree.draft("left".to_owned(), false).expect("makes");
    drop(draft);
    assert_eq!(bench.drafts(), 0, "what was not placed is gone");
}

#[test]
fn what_the_agent_wrote_meanwhile_is_never_written_over() {
    let bench = Bench::new();
    bench.write("a", "the agent's");
    assert!(matches!(bench.placed("a", "ours", None), Placed::Changed));
    let before = bench.look("a").stamp;
    bench.write("a", "the agent's second");
    assert!(matches!(bench.placed("a", "ours", Some(&before)), Placed::Changed));
    assert_eq!(text(&bench.at("a")), "the agent's second");
    let before = bench.look("a").stamp;
    assert!(matches!(bench.placed("a", "ours", Some(&before)), Placed::Here(_)));
    assert_eq!(text(&bench.at("a")), "ours");
    bench.write("x", "a file");
    assert!(
        matches!(bench.placed("x/y", "ours", None), Placed::Changed),
        "a file stands in a folder's place"
    );
    assert_eq!(bench.drafts(), 0);
}

#[test]
fn what_the_agent_changed_is_not_removed() {
    let bench = Bench::new();
    bench.write("a", "1");
    let before = bench.look("a").stamp;
    bench.write("a", "22");
    assert!(!bench.tree.remove(&path("a"), &before).expect("looks"));
    assert!(bench.tree.remove(&path("a"), &bench.look("a").stamp).expect("removes"));
    assert!(!bench.at("a").exists());
    assert!(bench.tree.remove(&path("a"), &before).expect("is gone already"));
    bench.write("d/e", "");
    assert!(!bench.tree.remove(&path("d"), &bench.look("d").stamp).expect("is not empty"));
    fs::remove_file(bench.at("d/e")).expect("removes");
    assert!(bench.tree.remove(&path("d"), &bench.look("d").stamp).expect("removes"));
}

#[test]
fn nothing_is_reached_through_a_link_however_it_is_asked_for() {
    let bench = Bench::new();
    let outside = bench.folder.path().join("outside");
    fs::create_dir(&outside).expect("makes");
    fs::write(outside.join("secret"), "secret").expect("writes");
    symlink(&outside, bench.at("link")).expect("links");
    symlink("/etc/passwd", bench.at("passwd")).expect("links");
    symlink("..", bench.at("up")).expect("links");
    symlink("/proc/self/root", bench.at("magic")).expect("links");
    bench.write("real/inside", "x");
    symlink("real", bench.at("within")).expect("links");
    for at in ["link/secret", "passwd", "up/outside/secret", "magic/etc/passwd", "within/inside"] {
        assert!(bench.tree.file(at).is_err(), "{at} is opened");
        if at.contains('/') {
            assert!(bench.tree.look(&path(at)).expect("answers").is_none(), "{at} is looked at");
            assert!(matches!(bench.placed(at, "ours", None), Placed::Changed), "{at} is written");
            assert!(bench.tree.remove(&path(at), &stamp(6)).expect("there is nothing"), "{at}");
        }
    }
    assert!(bench.tree.folder(Some("link")).is_err());
    assert!(bench.tree.make_folder("link/new").expect("answers").is_none());
    assert_eq!(text(&outside.join("secret")), "secret");
    assert_eq!(fs::read_dir(&outside).expect("is there").count(), 1);
    // The control: the names do lead there for somebody who follows links.
    assert_eq!(text(&bench.at("link/secret")), "secret");
    assert!(bench.at("up/outside/secret").exists());
}

#[test]
fn a_link_is_text_and_is_replaced_only_if_it_is_what_it_was() {
    let bench = Bench::new();
    assert!(matches!(bench.tree.link(&path("l"), "/etc/passwd", None).expect("links"), Placed::Here(_)));
    assert_eq!(bench.tree.target(&path("l")).expect("reads").as_deref(), Some("/etc/passwd"));
    assert!(matches!(bench.tree.link(&path("l"), "b", None).expect("looks"), Placed::Changed));
    let before = bench.look("l").stamp;
    assert!(matches!(bench.tree.link(&path("l"), "b", Some(&before)).expect("links"), Placed::Here(_)));
    assert_eq!(fs::read_link(bench.at("l")).expect("reads"), Path::new("b"));
    bench.write("file", "");
    assert_eq!(bench.tree.target(&path("file")).expect("answers"), None);
    assert_eq!(bench.drafts(), 0);
}

#[test]
fn a_folder_that_is_swapped_for_a_link_in_the_middle_leads_nowhere() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let bench = Bench::new();
    let outside = bench.folder.path().join("outside");
    fs::create_dir(&outside).expect("makes");
    fs::write(outside.join("f"), "outside").expect("writes");
    bench.write("d/f", "inside");
    let (swapping, aside) = (AtomicBool::new(true), bench.folder.path().join("aside"));
    let mut opened = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while swapping.load(Ordering::Relaxed) {
                fs::rename(bench.at("d"), &aside).expect("moves");
                symlink(&outside, bench.at("d")).expect("links");
                fs::remove_file(bench.at("d")).expect("removes");
                fs::rename(&aside, bench.at("d")).expect("moves back");
                // The folder is to be met as well as the link, also by a reader that is alone on its core.
                (0..64).for_each(|_| std::thread::yield_now());
            }
        });
        let mut tries = 0;
        while tries < 5_000 || (opened == 0 && tries < 5_000_000) {
            tries += 1;
            if let Ok((mut file, _)) = bench.tree.file("d/f") {
                let mut found = String::new();
                file.read_to_string(&mut found).expect("reads");
                assert_eq!(found, "inside");
                opened += 1;
            }
        }
        swapping.store(false, Ordering::Relaxed);
    });
    assert!(opened > 0, "it was there now and then");
}

#[test]
fn stale_drafts_go_and_begun_ones_are_gone_on_with() {
    let bench = Bench::new();
    let (draft, length) = bench.tree.draft("get-1".to_owned(), true).expect("makes");
    (&draft.file).write_all(b"half").expect("writes");
    draft.keep();
    assert_eq!(length, 0);
    fs::write(bench.folder.path().join("drafts/small-2"), "").expect("writes");
    bench.tree.tidy(|name| name.starts_with("get-")).expect("tidies");
    assert_eq!(bench.drafts(), 1);
    let (draft, length) = bench.tree.draft("get-1".to_owned(), true).expect("is there");
    assert_eq!(length, 4);
    drop(draft);
    let (_, length) = bench.tree.draft("get-1".to_owned(), false).expect("makes");
    assert_eq!(length, 0, "begun anew");
}

#[test]
fn a_name_is_given_only_where_nothing_has_it() {
    let bench = Bench::new();
    bench.write("a/x", "1");
    bench.write("b", "2");
    assert!(!bench.tree.rename("a/x", "b").expect("looks"));
    assert!(bench.tree.rename("a", "c").expect("renames"));
    assert!(!bench.tree.rename("a", "d").expect("is gone"));
    assert_eq!(text(&bench.at("c/x")), "1");
}
