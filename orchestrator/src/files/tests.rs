// SPDX-License-Identifier: Apache-2.0
use super::*;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use tempfile::TempDir;

struct Bench {
    folder: TempDir,
    files: UserFiles,
    sandbox: SandboxId,
}

const TENANT: &str = "acme";
const DISK: u64 = 64 << 20;

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
        UserFolder { path: self.slot(""), owner: None, is_torn: false }
    }

    fn owned(&self) -> Owned {
        let sandbox = self.sandbox.clone();
        Owned { sandbox, tenant: tenant(), user: user("alice"), disk_bytes: DISK }
    }

    async fn keep(&self) -> Report {
        report(self.files.keep(&self.owned(), Some(self.here())).await)
    }

    async fn hydrate(&self) -> Report {
        self.files.hydrate(&self.owned(), self.here()).await.expect("brings in")
    }

    /// Another sandbox of the same user, with a slot of its own, at the same time.
    fn another(&self, number: u8) -> Other<'_> {
        let folder = self.folder.path().join(format!("slot-{number}"));
        fs::create_dir(&folder).expect("makes");
        Other { bench: self, sandbox: SandboxId::from_random([100 + number; 12]), folder }
    }

    /// A new, empty slot of another sandbox of the same user.
    fn next(&mut self) {
        fs::remove_dir_all(self.slot("")).expect("removes");
        fs::create_dir(self.slot("")).expect("makes");
        self.sandbox = SandboxId::from_random([self.sandbox.as_str().as_bytes()[8].wrapping_add(1); 12]);
    }
}

/// A sandbox beside the bench's own.
struct Other<'a> {
    bench: &'a Bench,
    sandbox: SandboxId,
    folder: PathBuf,
}

impl Other<'_> {
    fn owned(&self) -> Owned {
        Owned { sandbox: self.sandbox.clone(), ..self.bench.owned() }
    }

    fn here(&self) -> UserFolder {
        UserFolder { path: self.folder.clone(), owner: None, is_torn: false }
    }

    async fn hydrate(&self) -> Report {
        self.bench.files.hydrate(&self.owned(), self.here()).await.expect("brings in")
    }

    async fn keep(&self) -> Report {
        report(self.bench.files.keep(&self.owned(), Some(self.here())).await)
    }
}

fn report(kept: Result<Kept, FilesError>) -> Report {
    match kept.expect("keeps") {
        Kept::Carried(report) => report,
        Kept::Lost => panic!("lost"),
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
    let bench = Bench::bounded(Bounds { entries: 3, bytes: 10, depth: 1, free: 0 });
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

/// Whatever is found under the user's folder that is no name of the user's.
fn drafts(bench: &Bench) -> usize {
    let entries = fs::read_dir(bench.kept("")).expect("is there").flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(copy::DRAFT)).count()
}

/// A file of `bytes` that are really there.
fn filled(path: &Path, bytes: u64) {
    fs::write(path, vec![b'x'; usize::try_from(bytes).expect("fits")]).expect("writes");
}

#[tokio::test]
async fn holes_take_no_room_on_the_way_back_nor_in() {
    let mut bench = Bench::new();
    let huge = 1_u64 << 40;
    fs::File::create(bench.slot("sparse")).expect("makes").set_len(huge).expect("sets");
    let middle = fs::File::options().write(true).open(bench.slot("sparse")).expect("opens");
    std::os::unix::fs::FileExt::write_all_at(&middle, b"here", huge / 2).expect("writes");
    let report = bench.keep().await;
    assert_eq!((report.files, report.left_count), (1, 0), "{report:?}");
    let kept = fs::metadata(bench.kept("sparse")).expect("is there");
    assert_eq!(kept.len(), huge);
    assert!(kept.blocks() * 512 < 1 << 20, "{} blocks", kept.blocks());
    bench.next();
    bench.hydrate().await;
    let back = fs::metadata(bench.slot("sparse")).expect("is there");
    assert!(back.len() == huge && back.blocks() * 512 < 1 << 20, "{} blocks", back.blocks());
    let mut text = [0; 4];
    let file = fs::File::open(bench.slot("sparse")).expect("opens");
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut text, huge / 2).expect("reads");
    assert_eq!(&text, b"here");
}

#[tokio::test]
async fn a_sandbox_leaves_no_more_than_its_disk_holds() {
    let bench = Bench::new();
    for number in 0..3 {
        filled(&bench.slot(&format!("f{number}")), DISK / 2 - 4096);
    }
    let report = bench.keep().await;
    assert_eq!((report.files, report.left_count), (2, 1), "{report:?}");
    assert_eq!(report.left[0].why, "there are too many bytes");
    assert!(report.bytes <= DISK);
}

#[tokio::test]
async fn a_user_has_a_total_over_all_conversations() {
    let bench = Bench::bounded(Bounds { bytes: 10 << 20, ..Bounds::default() });
    filled(&bench.slot("first"), 6 << 20);
    bench.keep().await;
    let other = bench.another(1);
    filled(&other.folder.join("second"), 6 << 20);
    let report = other.keep().await;
    assert_eq!((report.files, report.left_count), (0, 1), "{report:?}");
    assert_eq!(drafts(&bench), 0);
    // What takes the place of something as large is no more than before.
    let third = bench.another(2);
    third.hydrate().await;
    filled(&third.folder.join("first"), 7 << 20);
    assert_eq!(third.keep().await.files, 1);
}

#[tokio::test]
async fn names_of_one_file_count_once_and_stay_names_of_one_file() {
    let mut bench = Bench::new();
    fs::create_dir(bench.slot("d")).expect("makes");
    filled(&bench.slot("a"), DISK / 2);
    for name in ["b", "c", "d/e"] {
        fs::hard_link(bench.slot("a"), bench.slot(name)).expect("links");
    }
    let report = bench.keep().await;
    assert_eq!((report.files, report.left_count), (4, 0), "{report:?}");
    let inode = |path: PathBuf| fs::metadata(path).expect("is there").ino();
    for name in ["b", "c", "d/e"] {
        assert_eq!(inode(bench.kept(name)), inode(bench.kept("a")), "{name}");
    }
    assert_eq!(drafts(&bench), 0);
    bench.next();
    bench.hydrate().await;
    assert_eq!(inode(bench.slot("d/e")), inode(bench.slot("a")));
    let report = bench.keep().await;
    assert_eq!((report.files, report.deleted, report.conflict_count), (0, 0, 0), "untouched: {report:?}");
    fs::remove_file(bench.slot("b")).expect("removes");
    fs::write(bench.slot("b"), "its own now").expect("writes");
    bench.keep().await;
    assert_eq!(fs::read_to_string(bench.kept("b")).expect("is there"), "its own now");
    assert_eq!(fs::metadata(bench.kept("a")).expect("is there").len(), DISK / 2);
}

#[tokio::test]
async fn a_nearly_full_disk_is_not_filled_and_leaves_no_draft() {
    let bench = Bench::bounded(Bounds { free: u64::MAX, ..Bounds::default() });
    fs::write(bench.slot("a"), "x").expect("writes");
    let kept = bench.files.keep(&bench.owned(), Some(bench.here())).await;
    let error = kept.expect_err("is refused").source;
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(drafts(&bench), 0);
}

#[tokio::test]
async fn drafts_that_a_crash_left_are_removed() {
    let bench = Bench::new();
    fs::write(bench.slot("a"), "x").expect("writes");
    fs::create_dir_all(bench.kept("")).expect("makes");
    fs::write(bench.kept(&format!("{}sandbox-gone", copy::DRAFT)), "half").expect("writes");
    bench.keep().await;
    assert_eq!(drafts(&bench), 0);
}

#[tokio::test]
async fn two_sandboxes_that_end_together_lose_nothing_of_each_other() {
    let bench = Bench::new();
    let others: Vec<_> = (0..8).map(|number| bench.another(number)).collect();
    for other in &others {
        other.hydrate().await;
        for name in 0..50 {
            fs::write(other.folder.join(format!("shared-{name}")), other.sandbox.as_str().repeat(1000))
                .expect("writes");
        }
    }
    let reports = futures_util::future::join_all(others.iter().map(Other::keep)).await;
    let mut seen = 0;
    for name in 0..50 {
        let path = bench.kept(&format!("shared-{name}"));
        let beside = |other: &Other<'_>| bench.kept(&format!("shared-{name}.conflict-{}", other.sandbox));
        for other in &others {
            let mine = other.sandbox.as_str().repeat(1000);
            let holds = |path: &PathBuf| fs::read_to_string(path).is_ok_and(|text| text == mine);
            assert!(holds(&path) || holds(&beside(other)), "{} lost `shared-{name}`", other.sandbox);
            seen += 1;
        }
    }
    let conflicts: u64 = reports.iter().map(|report| report.conflict_count).sum();
    assert_eq!((seen, conflicts), (400, 350), "all but the first are told");
    assert_eq!(reports[0].left_count + drafts(&bench) as u64, 0);
}

#[tokio::test]
async fn what_another_conversation_changed_meanwhile_is_kept_beside_it() {
    let bench = Bench::new();
    for name in ["both", "theirs", "folder"] {
        fs::write(bench.slot(name), "first").expect("writes");
    }
    bench.keep().await;
    let (one, other) = (bench.another(1), bench.another(2));
    one.hydrate().await;
    other.hydrate().await;
    fs::write(one.folder.join("both"), "by one").expect("writes");
    fs::write(one.folder.join("theirs"), "by one").expect("writes");
    fs::write(one.folder.join("folder"), "by one").expect("writes");
    fs::write(other.folder.join("both"), "by another").expect("writes");
    fs::remove_file(other.folder.join("folder")).expect("removes");
    fs::create_dir(other.folder.join("folder")).expect("makes");
    fs::write(other.folder.join("folder/in"), "by another").expect("writes");
    assert_eq!(one.keep().await.conflict_count, 0);
    let report = other.keep().await;
    let text = |name: &str| fs::read_to_string(bench.kept(name)).expect("is there");
    assert_eq!(
        (text("both"), text("theirs"), text("folder")),
        ("by one".into(), "by one".into(), "by one".into())
    );
    let beside = |name: &str| format!("{name}.conflict-{}", other.sandbox);
    assert_eq!(text(&beside("both")), "by another");
    assert_eq!(text(&format!("{}/in", beside("folder"))), "by another");
    let mut told: Vec<_> = report.conflicts.iter().map(|it| (it.path.clone(), it.kept_as.clone())).collect();
    told.sort_unstable();
    assert_eq!(told, ["both", "folder"].map(|name| (name.to_owned(), beside(name))));
    let again = other.keep().await;
    assert_eq!(text("both"), "by one", "another try changes nothing: {again:?}");
}

#[tokio::test]
async fn nothing_that_a_guest_does_to_its_files_is_an_error() {
    let bench = Bench::new();
    for path in ["gone/file", "link/file", "deep/file"] {
        fs::create_dir(bench.slot(path.split('/').next().expect("a folder"))).expect("makes");
        fs::write(bench.slot(path), "first").expect("writes");
    }
    bench.keep().await;
    let other = bench.another(1);
    other.hydrate().await;
    let at = |path: &str| other.folder.join(path);
    fs::remove_dir_all(at("link")).expect("removes");
    symlink("/etc", at("link")).expect("links");
    fs::remove_dir_all(at("gone")).expect("removes");
    fs::write(at("gone"), "a file now").expect("writes");
    let mut deep = at("deep");
    for _ in 0..200 {
        deep.push("d");
        fs::create_dir(&deep).expect("makes");
    }
    fs::write(at(&format!("{}own", copy::DRAFT)), "").expect("writes");
    let report = other.keep().await;
    assert_eq!(report.deleted, 2, "{report:?}");
    assert_eq!(fs::read_to_string(bench.kept("deep/file")).expect("is there"), "first");
    assert!(report.left.iter().any(|left| left.why == "it lies too deep"), "{report:?}");
}

#[tokio::test]
async fn files_that_are_gone_though_they_were_brought_in_are_told() {
    let bench = Bench::new();
    fs::write(bench.slot("a"), "x").expect("writes");
    bench.keep().await;
    let other = bench.another(1);
    let nothing = bench.files.keep(&other.owned(), None).await.expect("answers");
    assert!(matches!(nothing, Kept::Carried(_)), "nothing was brought in yet");
    other.hydrate().await;
    let lost = bench.files.keep(&other.owned(), None).await.expect("answers");
    assert!(matches!(lost, Kept::Lost), "{lost:?}");
    // Once they were kept, they may be gone: their slot is removed, and a crash asks again.
    other.keep().await;
    let again = bench.files.keep(&other.owned(), None).await.expect("answers");
    assert!(matches!(again, Kept::Carried(_)), "{again:?}");
    bench.files.forget(&other.sandbox).await;
    let names = fs::read_dir(bench.folder.path().join("store/hydrated")).expect("is there").count();
    assert_eq!(names, 0);
}

#[tokio::test]
async fn what_a_machine_lost_that_stopped_is_neither_deleted_nor_replaced() {
    let bench = Bench::new();
    for name in ["lost", "cut", "whole"] {
        fs::write(bench.slot(name), name).expect("writes");
    }
    bench.keep().await;
    let other = bench.another(1);
    other.hydrate().await;
    fs::remove_file(other.folder.join("lost")).expect("is lost");
    fs::write(other.folder.join("cut"), "").expect("is cut");
    fs::write(other.folder.join("new"), "new").expect("writes");
    let torn = UserFolder { is_torn: true, ..other.here() };
    let report = report(bench.files.keep(&other.owned(), Some(torn)).await);
    assert_eq!((report.deleted, report.conflict_count), (0, 1), "{report:?}");
    let beside = format!("cut.conflict-{}", other.sandbox);
    for (name, text) in [("lost", "lost"), ("cut", "cut"), ("whole", "whole"), ("new", "new"), (&*beside, "")]
    {
        assert_eq!(fs::read_to_string(bench.kept(name)).expect(name), text);
    }
}

#[tokio::test]
async fn files_that_no_sandbox_could_hold_are_told_before_it_is_made() {
    let bench = Bench::new();
    assert_eq!(bench.files.too_much(&bench.owned()).await.expect("counts"), None, "there are none");
    filled(&bench.slot("a"), DISK - 4096);
    bench.keep().await;
    let told = bench.files.too_much(&bench.owned()).await.expect("counts").expect("is too much");
    assert!(told.bytes >= DISK - 4096 && told.room_bytes < DISK, "{told:?}");
    let larger = Owned { disk_bytes: 2 * DISK, ..bench.owned() };
    assert_eq!(bench.files.too_much(&larger).await.expect("counts"), None);
    let unlimited = Owned { disk_bytes: 0, ..larger };
    assert_eq!(bench.files.too_much(&unlimited).await.expect("counts"), None, "a cluster's without a limit");
}
