// SPDX-License-Identifier: Apache-2.0
use super::gcs::{Bucket, TOKEN, chosen, served};
use super::*;
use crate::storage::cache::{CacheBounds, Tidied};
use crate::storage::fill::Filled;
use postern_common::files::orders::FILLED;
use postern_common::files::{Entry, FilePath as WirePath, Version as WireVersion, What};
use postern_common::tasks::Tasks;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A store of which a machine has a cache, and slots of sandboxes there.
pub(super) struct Machine {
    bench: Bench,
    pub(super) storage: Storage,
    pub(super) folder: TempDir,
    bucket: Option<Arc<Mutex<Bucket>>>,
    tasks: Tasks,
}

impl Machine {
    async fn new(is_cloud: bool, bounds: CacheBounds) -> Self {
        let (tasks, folder) = (Tasks::new(), tempfile::tempdir().expect("a folder"));
        let (server, bucket) = if is_cloud {
            let (bucket, endpoint) = served(&tasks).await;
            (Server::served(chosen(&endpoint, ("GOOGLE_BEARER_TOKEN", TOKEN))), Some(bucket))
        } else {
            (Server::folder(), None)
        };
        let bench = Bench::new(server).await;
        let cache = Cache::open(&folder.path().join("cache"), bounds).expect("opens");
        let storage = bench.storage.clone().with_cache(Some(cache));
        Self { bench, storage, folder, bucket, tasks }
    }

    pub(super) async fn usual() -> Self {
        Self::new(true, CacheBounds { bytes: 1 << 30, files: 1 << 20, age: Duration::from_secs(3600) }).await
    }

    pub(super) fn user(&self, name: &str) -> UserFiles {
        self.storage.of(&tenant("acme"), &user(name))
    }

    pub(super) fn cache(&self) -> Cache {
        self.storage.cache.clone().expect("has one")
    }

    /// An empty slot.
    fn slot(&self, name: &str) -> PathBuf {
        let slot = self.folder.path().join(name);
        fs::create_dir_all(slot.join("user")).expect("makes");
        fs::create_dir_all(slot.join("sync")).expect("makes");
        slot
    }

    async fn fill(&self, files: &UserFiles, slot: &Path) -> Filled {
        let listed = files.list().await.expect("lists").files;
        let (user, state) = (slot.join("user"), slot.join("sync"));
        let slot = Slot { files: &user, owner: None, state: &state };
        files.fill(&listed, slot, told).await.expect("fills")
    }

    async fn keep(&self, files: &UserFiles, slot: &Path) -> u64 {
        let listed = files.list().await.expect("lists").files;
        files.keep(listed, &slot.join("user")).await.expect("keeps")
    }

    pub(super) fn store(&self) -> &Store {
        &self.bench.database.store
    }

    /// Requests that the store got so far.
    pub(super) fn asked(&self) -> usize {
        self.bucket.as_ref().expect("a cloud").lock().expect("not poisoned").sent.len()
    }

    pub(super) async fn end(self) {
        self.tasks.shut_down(Duration::from_secs(10)).await.expect("ends");
    }
}

fn told(file: &FileEntry) -> Option<Entry> {
    let what = What::File {
        size: file.size,
        digest: None,
        mode: u16::try_from(file.mode).expect("bits"),
        modified: file.modified.as_microsecond(),
    };
    let version = WireVersion::new(file.version.as_str().to_owned())?;
    Some(Entry { path: WirePath::parse(file.path.as_str()).ok()?, what, version })
}

/// What a list for a sync names.
fn list(slot: &Path) -> Vec<String> {
    let text = fs::read_to_string(slot.join("sync").join(FILLED)).unwrap_or_default();
    let entry = |line: &str| serde_json::from_str::<Entry>(line).expect("JSON").path.as_str().to_owned();
    let mut names: Vec<String> = text.lines().map(entry).collect();
    names.sort();
    names
}

/// Writes a file to the store and into a slot, as one that its sync has carried.
async fn carried(files: &UserFiles, slot: &Path, at: &str, bytes: &Bytes, mode: u32) {
    let about = NewFile {
        mode: Some(mode),
        modified: Some("2020-01-02T03:04:05.678Z".parse().expect("a time")),
        ..NewFile::default()
    };
    files.write(&by(), &path(at), &Condition::Anything, about, pieces(bytes)).await.expect("writes");
    let there = slot.join("user").join(at);
    fs::create_dir_all(there.parent().expect("has one")).expect("makes");
    fs::write(there, bytes).expect("writes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_sandbox_is_filled_from_the_cache_and_nothing_is_asked_of_the_store() {
    let machine = Machine::usual().await;
    let (files, first) = (machine.user("u"), machine.slot("first"));
    let (long, sparse) = (bytes(9 << 20, 4), Bytes::from(vec![0; 3 << 20]));
    let all = [
        ("a/b/run", Bytes::from_static(b"#!"), 0o755),
        ("a\nb", Bytes::from_static(b"odd"), 0o644),
        ("empty", Bytes::new(), 0o600),
        ("long", long, 0o644),
        ("sparse", sparse, 0o644),
    ];
    for (name, content, mode) in &all {
        carried(&files, &first, name, content, *mode).await;
    }
    let none = machine.slot("none");
    assert_eq!(machine.fill(&files, &none).await, Filled::default(), "nothing is at hand yet");
    let second = machine.slot("second");
    assert_eq!(machine.keep(&files, &first).await, 5);
    assert_eq!(machine.keep(&files, &first).await, 0, "once is enough");
    let listed = files.list().await.expect("lists").files;
    let before = machine.asked();
    let (user, state) = (second.join("user"), second.join("sync"));
    let slot = Slot { files: &user, owner: None, state: &state };
    let filled = files.fill(&listed, slot, told).await.expect("fills");
    assert_eq!(machine.asked(), before, "what was brought came from this machine");
    assert_eq!((filled.files, filled.bytes), (5, 5 + 12 * MIB));
    assert_eq!(list(&second), ["a\nb", "a/b/run", "empty", "long", "sparse"]);
    for (name, content, mode) in &all {
        let there = user.join(name);
        let about = fs::metadata(&there).expect("is there");
        assert_eq!(fs::read(&there).expect("reads"), *content, "{name:?}");
        assert_eq!(
            (about.mode() & 0o777, about.mtime(), about.mtime_nsec()),
            (*mode, 1_577_934_245, 678_000_000)
        );
    }
    assert!(fs::metadata(user.join("sparse")).expect("is there").blocks() < 64, "holes stay holes");
    assert_eq!(
        machine.fill(&files, &second).await,
        Filled::default(),
        "a slot that is in use stays as it is"
    );
    // A file of the store that differs by now is for the sync; the others are not.
    put(&files, "empty", &Condition::Something, "no more").await.expect("writes");
    let third = machine.slot("third");
    assert_eq!(machine.fill(&files, &third).await.files, 4);
    assert!(!third.join("user/empty").exists() && !list(&third).contains(&"empty".to_owned()));
    machine.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_what_it_says_is_neither_kept_nor_filled_in() {
    let machine = Machine::usual().await;
    let (files, slot) = (machine.user("u"), machine.slot("slot"));
    let outside = machine.folder.path().join("outside");
    fs::write(&outside, "theirs").expect("writes");
    for name in ["changed", "linked", "below/f", "fifo", "good", "bent"] {
        carried(&files, &slot, name, &Bytes::from_static(b"theirs"), 0o644).await;
    }
    let there = |name: &str| slot.join("user").join(name);
    fs::write(there("changed"), "THEIRS").expect("writes");
    fs::remove_file(there("linked")).expect("removes");
    symlink(&outside, there("linked")).expect("links");
    fs::remove_dir_all(there("below")).expect("removes");
    fs::create_dir(machine.folder.path().join("elsewhere")).expect("makes");
    fs::write(machine.folder.path().join("elsewhere/f"), "theirs").expect("writes");
    symlink(machine.folder.path().join("elsewhere"), there("below")).expect("links");
    fs::remove_file(there("fifo")).expect("removes");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        there("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o644),
        0,
    )
    .expect("makes");
    assert_eq!(machine.keep(&files, &slot).await, 1, "`good` and `bent`, which are the same");
    let other = machine.slot("other");
    assert_eq!(machine.fill(&files, &other).await.files, 6, "the control: all have those bytes");
    // Bytes that went bad on the cache's disk.
    let digest = Digest::of(b"theirs").to_string();
    let prefix = files.prefix.as_str();
    let cached = machine
        .folder
        .path()
        .join("cache")
        .join(prefix)
        .join(digest.get(..2).expect("has two"))
        .join(&digest);
    fs::write(&cached, "tHeirs").expect("is there");
    let third = machine.slot("third");
    assert_eq!(machine.fill(&files, &third).await, Filled::default());
    let left = fs::read_dir(third.join("user")).expect("reads").flatten().filter(|it| it.path().is_file());
    assert_eq!((left.count(), list(&third)), (0, Vec::new()), "no draft is left of it");
    assert!(!cached.exists(), "it makes room for a good one");
    assert_eq!(machine.keep(&files, &slot).await, 1);
    assert_eq!(machine.fill(&files, &machine.slot("fourth")).await.files, 6);
    machine.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_a_folder_is_at_hand_itself() {
    let bounds = CacheBounds { bytes: 1 << 30, files: 1 << 20, age: Duration::from_secs(3600) };
    let machine = Machine::new(false, bounds).await;
    let (files, slot) = (machine.user("u"), machine.slot("slot"));
    for name in ["a", "d/b", "bent"] {
        put(&files, name, &Condition::Nothing, name).await.expect("writes");
    }
    let listed = files.list().await.expect("lists").files;
    let kept = machine.bench.server.folder.path().join("files").join(files.prefix.as_str()).join("files");
    fs::write(kept.join("bent"), "BENT").expect("writes");
    let (user, state) = (slot.join("user"), slot.join("sync"));
    let to = Slot { files: &user, owner: None, state: &state };
    assert_eq!(files.fill(&listed, to, told).await.expect("fills").files, 2, "all but what changed since");
    assert_eq!(list(&slot), ["a", "d/b"]);
    assert_eq!(fs::read_to_string(user.join("d/b")).expect("reads"), "d/b");
    assert_eq!(machine.keep(&files, &slot).await, 0);
    assert_eq!(
        fs::read_dir(machine.folder.path().join("cache")).expect("reads").count(),
        0,
        "twice is no use"
    );
    put(&files, ".posternignore", &Condition::Nothing, "a\n").await.expect("writes");
    let third = machine.slot("third");
    assert_eq!(machine.fill(&files, &third).await, Filled::default(), "whose rules are the sync's to read");
    machine.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_old_goes_and_then_what_was_not_used_for_longest() {
    let machine =
        Machine::new(true, CacheBounds { bytes: 25, files: 100, age: Duration::from_secs(3600) }).await;
    let (files, slot) = (machine.user("u"), machine.slot("slot"));
    let names = ["a", "b", "c", "d"];
    for name in names {
        carried(&files, &slot, name, &Bytes::from(name.repeat(10)), 0o644).await;
    }
    carried(&files, &slot, "huge", &bytes(26, 1), 0o644).await;
    // Keeping tidies as well: so four and one become what there is room for.
    machine.keep(&files, &slot).await;
    let is_there = |name: &str| {
        let digest = Digest::of(name.repeat(10).as_bytes()).to_string();
        let prefix = files.prefix.as_str();
        let at = machine
            .folder
            .path()
            .join("cache")
            .join(prefix)
            .join(digest.get(..2).expect("has two"))
            .join(&digest);
        at.exists().then_some(at)
    };
    assert_eq!(names.iter().filter(|name| is_there(name).is_some()).count(), 2);
    for name in names {
        let opened = fs::File::open(slot.join("user").join(name)).expect("opens");
        machine
            .cache()
            .put(&files.prefix, &Digest::of(name.repeat(10).as_bytes()), &opened, 10)
            .expect("keeps");
    }
    let now = clock::now();
    let used = |name: &str, seconds_ago: u64| {
        let seconds = u64::try_from(clock::now().as_second()).expect("is after 1970") - seconds_ago;
        let at = std::time::UNIX_EPOCH + Duration::from_secs(seconds);
        let file = fs::File::options().write(true).open(is_there(name).expect("is there")).expect("opens");
        file.set_modified(at).expect("sets");
    };
    for (name, seconds_ago) in [("a", 10), ("b", 4000), ("c", 5), ("d", 20)] {
        used(name, seconds_ago);
    }
    let tidied = machine.cache().tidy(now, true).expect("tidies");
    assert_eq!(tidied, Some(Tidied { files: 2, bytes: 20, gone: 2 }));
    assert!(is_there("a").is_some() && is_there("c").is_some(), "those that were used last");
    assert_eq!(machine.cache().tidy(now, false).expect("tidies"), None, "nothing has come since");
    // Being used counts, not having come.
    used("a", 3000);
    drop(machine.cache().get(&files.prefix, &Digest::of("a".repeat(10).as_bytes())).expect("looks"));
    let later = now.checked_add(jiff::SignedDuration::from_secs(3000)).expect("is near");
    assert_eq!(machine.cache().tidy(later, true).expect("tidies").map(|it| it.gone), Some(0));
    machine.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_holds_only_so_many_files_and_no_folder_without_one() {
    let machine =
        Machine::new(true, CacheBounds { bytes: 1 << 30, files: 32, age: Duration::from_secs(3600) }).await;
    let (one, two) = (machine.user("one"), machine.user("two"));
    let put = |files: &UserFiles, number: u8| {
        let kept = machine.cache().put_bytes(&files.prefix, &Digest::of(&[number]), &[number]);
        assert!(kept.expect("keeps"));
        // As if each came a second after the one before.
        let at = std::time::UNIX_EPOCH + Duration::from_secs(2_000_000_000 + u64::from(number));
        let file =
            machine.cache().get(&files.prefix, &Digest::of(&[number])).expect("looks").expect("is there");
        file.set_modified(at).expect("sets");
    };
    (0..3).for_each(|number| put(&one, number));
    (3..35).for_each(|number| put(&two, number));
    let tidied = machine.cache().tidy(clock::now(), false).expect("tidies").expect("enough has come");
    assert_eq!((tidied.files, tidied.gone), (32, 3));
    assert_eq!(machine.cache().tidy(clock::now(), false).expect("tidies"), None, "the control: nothing came");
    let folder = |files: &UserFiles| machine.folder.path().join("cache").join(files.prefix.as_str());
    assert!(folder(&one).exists());
    machine.cache().tidy(clock::now(), true).expect("tidies");
    assert!(!folder(&one).exists() && folder(&two).exists(), "the name of who has nothing there is gone");
    machine.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cache_of_a_user_is_nobody_elses_and_goes_with_them() {
    let machine = Machine::usual().await;
    let (one, two, slot) = (machine.user("one"), machine.user("two"), machine.slot("slot"));
    for files in [&one, &two] {
        carried(files, &slot, "f", &Bytes::from_static(b"the same"), 0o644).await;
    }
    assert_eq!(machine.keep(&one, &slot).await, 1);
    let (first, second) = (machine.slot("first"), machine.slot("second"));
    assert_eq!(machine.fill(&two, &second).await, Filled::default(), "not from another's");
    assert_eq!(machine.fill(&one, &first).await.files, 1, "the control");
    machine.keep(&two, &slot).await;
    let digest = Digest::of(b"the same");
    let has = |files: &UserFiles| machine.cache().get(&files.prefix, &digest).expect("looks").is_some();
    machine.storage.erase_user(&one.owner).await.expect("erases");
    assert!(!has(&one) && has(&two));
    machine.storage.erase_tenant(&tenant("acme")).await.expect("erases");
    assert!(!has(&two));
    let place = machine.folder.path().join("cache");
    assert!(!place.join(one.prefix.as_str()).exists() && !place.join(two.prefix.as_str()).exists());
    assert!(!place.join("tenants/acme").exists(), "no name is left either");
    let mode = fs::metadata(&place).expect("is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "nobody else of this machine looks into it");
    machine.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_never_takes_the_last_of_the_disk() {
    let machine = Machine::usual().await;
    let (files, slot) = (machine.user("u"), machine.slot("slot"));
    carried(&files, &slot, "a", &Bytes::from_static(b"theirs"), 0o644).await;
    let mut full = machine.cache();
    full.free = u64::MAX;
    let full = machine.storage.clone().with_cache(Some(full)).of(&tenant("acme"), &user("u"));
    let listed = files.list().await.expect("lists").files;
    assert_eq!(full.keep(listed, &slot.join("user")).await.expect("is no error"), 0);
    assert_eq!(machine.keep(&files, &slot).await, 1, "the control: there is room");
    machine.end().await;
}
