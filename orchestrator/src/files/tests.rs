// SPDX-License-Identifier: Apache-2.0
use super::*;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use tempfile::TempDir;

struct Bench {
    folder: TempDir,
    files: UserFiles,
    sandbox: SandboxId,
}

const TENANT: &str = "acme";

impl Bench {
    fn new() -> Self {
        Self::bounded(Bounds::default())
    }

    fn bounded(bounds: Bounds) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let files = UserFiles::new(folder.path().join("store"), bounds);
        let bench = Self { folder, files, sandbox: SandboxId::from_random([1; 12]) };
        fs::create_dir(bench.slot("")).expect("makes");
        bench
    }

    fn slot(&self, path: &str) -> PathBuf {
        self.folder.path().join("slot").join(path)
    }

    fn kept(&self, path: &str) -> PathBuf {
        self.files.folder(&tenant(), &user("alice")).join(path)
    }

    fn here(&self) -> UserFolder {
        UserFolder { path: self.slot(""), owner: None }
    }

    async fn keep(&self) -> Report {
        self.files.keep(&self.sandbox, &tenant(), &user("alice"), self.here()).await.expect("keeps")
    }

    async fn hydrate(&self) -> Report {
        self.files.hydrate(&self.sandbox, &tenant(), &user("alice"), self.here()).await.expect("brings in")
    }

    /// A new, empty slot of another sandbox of the same user.
    fn next(&mut self) {
        fs::remove_dir_all(self.slot("")).expect("removes");
        fs::create_dir(self.slot("")).expect("makes");
        self.sandbox = SandboxId::from_random([self.sandbox.as_str().as_bytes()[8].wrapping_add(1); 12]);
    }
}

fn tenant() -> TenantId {
    TenantId::parse(TENANT).expect("a name")
}

fn user(id: &str) -> UserId {
    UserId::parse(id).expect("an id")
}

#[tokio::test]
async fn files_come_back_with_their_folders_and_whether_they_can_be_run() {
    let mut bench = Bench::new();
    fs::create_dir_all(bench.slot("a/b/empty")).expect("makes");
    fs::write(bench.slot("a/b/run"), "#!/bin/sh").expect("writes");
    fs::set_permissions(bench.slot("a/b/run"), fs::Permissions::from_mode(0o755)).expect("ours");
    fs::write(bench.slot("näme with\nbreak"), "x").expect("writes");
    assert_eq!(bench.keep().await.files, 2);
    bench.next();
    assert_eq!(bench.hydrate().await.files, 2);
    assert_eq!(fs::read_to_string(bench.slot("a/b/run")).expect("is there"), "#!/bin/sh");
    assert_eq!(fs::metadata(bench.slot("a/b/run")).expect("is there").permissions().mode() & 0o777, 0o711);
    assert!(bench.slot("a/b/empty").is_dir() && bench.slot("näme with\nbreak").is_file());
}

#[tokio::test]
async fn links_and_what_is_no_file_are_named_and_left() {
    let mut bench = Bench::new();
    let secret = bench.folder.path().join("secret");
    fs::write(&secret, "of the host").expect("writes");
    symlink(&secret, bench.slot("link")).expect("links");
    symlink("/etc", bench.slot("folder-link")).expect("links");
    rustix::fs::mknodat(rustix::fs::CWD, bench.slot("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .expect("makes");
    drop(std::os::unix::net::UnixListener::bind(bench.slot("socket")).expect("binds"));
    fs::write(bench.slot("plain"), "x").expect("writes");
    let report = bench.keep().await;
    let mut left: Vec<(&str, &str)> = report.left.iter().map(|left| (left.path.as_str(), left.why)).collect();
    left.sort_unstable();
    assert_eq!(report.files, 1);
    assert_eq!(
        left.iter().map(|(path, _)| *path).collect::<Vec<_>>(),
        ["fifo", "folder-link", "link", "socket"]
    );
    bench.next();
    bench.hydrate().await;
    assert!(!bench.slot("link").exists() && !bench.slot("folder-link").exists());
}

#[tokio::test]
async fn a_link_that_takes_a_folders_place_leads_nowhere_outside() {
    let bench = Bench::new();
    let outside = bench.folder.path().join("outside");
    fs::create_dir(&outside).expect("makes");
    fs::write(outside.join("victim"), "whole").expect("writes");
    fs::create_dir(bench.slot("d")).expect("makes");
    fs::write(bench.slot("d/victim"), "mine").expect("writes");
    bench.keep().await;
    // The store's folder becomes a link: neither writing nor deleting may follow it.
    fs::remove_dir_all(bench.kept("d")).expect("removes");
    symlink(&outside, bench.kept("d")).expect("links");
    fs::write(bench.slot("d/victim"), "mine again").expect("writes");
    bench.keep().await;
    assert_eq!(fs::read_to_string(outside.join("victim")).expect("is there"), "whole");
    assert_eq!(fs::read_to_string(bench.kept("d/victim")).expect("is there"), "mine again");
}

#[tokio::test]
async fn what_a_sandbox_did_not_touch_is_not_written_back() {
    let mut bench = Bench::new();
    for name in ["same", "changed", "deleted", "taken-over"] {
        fs::write(bench.slot(name), "first").expect("writes");
    }
    bench.keep().await;
    bench.next();
    bench.hydrate().await;
    fs::write(bench.slot("changed"), "other").expect("writes");
    for name in ["deleted", "taken-over"] {
        fs::remove_file(bench.slot(name)).expect("removes");
    }
    // Another conversation of the same user writes meanwhile.
    fs::remove_file(bench.kept("taken-over")).expect("removes");
    fs::write(bench.kept("taken-over"), "by another").expect("writes");
    fs::write(bench.kept("same"), "by another").expect("writes");
    let report = bench.keep().await;
    assert_eq!((report.files, report.deleted), (1, 1));
    assert_eq!(fs::read_to_string(bench.kept("same")).expect("is there"), "by another");
    assert_eq!(fs::read_to_string(bench.kept("changed")).expect("is there"), "other");
    assert_eq!(fs::read_to_string(bench.kept("taken-over")).expect("is there"), "by another");
    assert!(!bench.kept("deleted").exists());
    assert_eq!(bench.keep().await.deleted, 0, "may be repeated");
}

#[tokio::test]
async fn a_change_that_keeps_size_and_time_is_seen() {
    let mut bench = Bench::new();
    fs::write(bench.slot("a"), "first").expect("writes");
    bench.keep().await;
    bench.next();
    bench.hydrate().await;
    let time = fs::metadata(bench.slot("a")).expect("is there").modified().expect("a time");
    fs::write(bench.slot("a"), "other").expect("writes");
    fs::File::options().write(true).open(bench.slot("a")).expect("opens").set_modified(time).expect("sets");
    assert_eq!(bench.keep().await.files, 1);
    assert_eq!(fs::read_to_string(bench.kept("a")).expect("is there"), "other");
}

#[tokio::test]
async fn bounds_hold_and_say_what_was_left() {
    let bench = Bench::bounded(Bounds { entries: 3, bytes: 10, depth: 1 });
    fs::create_dir_all(bench.slot("deep/deeper")).expect("makes");
    fs::write(bench.slot("big"), "12345678901").expect("writes");
    let report = bench.keep().await;
    let why: Vec<&str> = report.left.iter().map(|left| left.why).collect();
    assert!(why.contains(&"it lies too deep") && why.contains(&"there are too many bytes"), "{report:?}");
    for number in 0..5 {
        fs::write(bench.slot(&format!("f{number}")), "").expect("writes");
    }
    let report = bench.keep().await;
    assert!(report.left.iter().any(|left| left.why == "there are too many files"), "{report:?}");
}

#[test]
fn users_cannot_reach_each_others_folders_by_their_names() {
    let files = UserFiles::new("/store".into(), Bounds::default());
    let folder = |id: &str| files.folder(&tenant(), &user(id));
    for hostile in ["..", ".", "../bob", "a/../../bob", "bob/", "/etc", "b%6fb", "BOB", "bob\u{202e}"] {
        let path = folder(hostile);
        assert_ne!(path, folder("bob"), "{hostile}");
        assert!(path.starts_with("/store/tenants/acme/users"));
        assert_eq!(path.components().count(), folder("bob").components().count(), "{hostile}");
        let climbs = path.components().any(|part| part == std::path::Component::ParentDir);
        assert!(!climbs, "{hostile}");
    }
}
