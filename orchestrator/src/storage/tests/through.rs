// SPDX-License-Identifier: Apache-2.0
//! What syncs of a cluster get out of the cache that orchestrators share, and what comes into it.

use super::cache::Machine;
use super::*;
use crate::storage::through::TURNS;
use crate::store::BegunErasure;
use std::fs;
use std::path::PathBuf;

/// One of the orchestrators of a cluster, whose cache lies on a mount of all.
fn replica(machine: &Machine) -> UserFiles {
    machine.storage.clone().read_through().of(&tenant("acme"), &user("u"))
}

/// Where the cache has these bytes.
fn place(machine: &Machine, files: &UserFiles, content: &[u8]) -> PathBuf {
    let digest = Digest::of(content).to_string();
    let user = machine.folder.path().join("cache").join(files.prefix.as_str());
    user.join(digest.get(..2).expect("has two")).join(digest)
}

async fn opened(files: &UserFiles, entry: &FileEntry) -> Open {
    files.open(&entry.path, 0, &entry.version).await.expect("opens")
}

/// Waits until nothing is being kept any more.
async fn kept(files: &UserFiles) {
    let turns = files.storage.through.as_ref().expect("reads through").turns();
    drop(turns.acquire_many(u32::try_from(TURNS).expect("fits")).await.expect("stays open"));
}

/// A file that whoever opens waits for, as for one of a server that is away; dropped, they go on.
struct Pipe(PathBuf);

impl Pipe {
    fn in_the_place_of(at: PathBuf) -> Self {
        fs::remove_file(&at).expect("is there");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &at, rustix::fs::FileType::Fifo, mode, 0).expect("makes");
        Self(at)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let _ = fs::File::options().read(true).write(true).open(&self.0).is_ok();
    }
}

async fn written(files: &UserFiles, at: &str, content: &Bytes) -> FileEntry {
    let (path, any) = (path(at), Condition::Anything);
    files.write(&by(), &path, &any, NewFile::default(), pieces(content)).await.expect("writes")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_orchestrator_had_of_the_store_all_have_of_the_cache() {
    let machine = Machine::usual().await;
    let (one, other) = (replica(&machine), replica(&machine));
    let mut entries = Vec::new();
    for (at, content) in
        [("d/small", Bytes::from_static(b"few")), ("empty", Bytes::new()), ("long", bytes(3 << 20, 7))]
    {
        entries.push((written(&one, at, &content).await, content));
    }
    for (entry, content) in &entries {
        assert!(!place(&machine, &one, content).exists(), "what is written is not read yet");
        let before = machine.asked();
        assert_eq!(all(opened(&one, entry).await.content).await, *content);
        assert!(machine.asked() > before, "the control: it came from the store");
    }
    kept(&one).await;
    let before = machine.asked();
    for (entry, content) in &entries {
        let open = opened(&other, entry).await;
        assert_eq!((open.size, open.digest), (entry.size, entry.digest));
        assert_eq!(all(open.content).await, *content);
    }
    assert_eq!(machine.asked(), before, "nothing was asked of the store");
    // The rest of a file, and a version that is no more, are the store's to give.
    let (long, content) = &entries[2];
    let rest = other.open(&long.path, 100, &long.version).await.expect("opens");
    assert_eq!(all(rest.content).await, content.slice(100..));
    let (small, _) = &entries[0];
    written(&one, "d/small", &Bytes::from_static(b"new")).await;
    let old = other.open(&small.path, 0, &small.version).await.map(drop);
    assert!(matches!(old, Err(StorageError::Conflict { .. })), "{old:?}");
    machine.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_of_the_cache_is_never_taken_for_the_real_one() {
    let machine = Machine::usual().await;
    let files = replica(&machine);
    let (small, long) = (Bytes::from_static(b"few"), bytes(3 << 20, 7));
    let entries = [written(&files, "small", &small).await, written(&files, "long", &long).await];
    for entry in &entries {
        all(opened(&files, entry).await.content).await;
    }
    kept(&files).await;
    for content in [&small, &long] {
        let mut bad = content.to_vec();
        *bad.last_mut().expect("has one") ^= 1;
        fs::write(place(&machine, &files, content), bad).expect("is there");
    }
    assert_eq!(all(opened(&files, &entries[0]).await.content).await, small, "compared before it is told");
    let broken: Vec<_> = opened(&files, &entries[1]).await.content.collect().await;
    assert!(broken.last().is_some_and(Result::is_err), "its sync brings it again");
    assert!(!place(&machine, &files, &long).exists(), "and finds it in the store");
    assert_eq!(all(opened(&files, &entries[1]).await.content).await, long);
    // One that is not as long as it was.
    kept(&files).await;
    fs::write(place(&machine, &files, &long), "cut").expect("is there");
    assert_eq!(all(opened(&files, &entries[1]).await.content).await, long);
    machine.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_being_erased_leaves_nothing_in_the_cache() {
    let machine = Machine::usual().await;
    let files = replica(&machine);
    let content = Bytes::from_static(b"few");
    let entry = written(&files, "f", &content).await;
    // As a read that began before the erasure, and ends when that has looked through the cache.
    let open = opened(&files, &entry).await;
    assert_eq!(files.begin_erasure(clock::now()).await.expect("begins"), BegunErasure::Begun);
    assert_eq!(all(open.content).await, content);
    kept(&files).await;
    assert!(!place(&machine, &files, &content).exists());
    machine.storage.erase_user(&files.owner).await.expect("erases");
    machine.store().erase_user(&files.owner, &erased()).await.expect("erases");
    // The control: whoever comes back.
    let entry = written(&files, "f", &content).await;
    all(opened(&files, &entry).await.content).await;
    kept(&files).await;
    assert!(place(&machine, &files, &content).exists());
    machine.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_that_hangs_holds_nobody_up() {
    let machine = Machine::usual().await;
    let files = replica(&machine);
    let content = Bytes::from_static(b"few");
    let entry = written(&files, "f", &content).await;
    all(opened(&files, &entry).await.content).await;
    kept(&files).await;
    let pipe = Pipe::in_the_place_of(place(&machine, &files, &content));
    let before = machine.asked();
    assert_eq!(all(opened(&files, &entry).await.content).await, content);
    assert_eq!(machine.asked(), before + 1, "from the store");
    // It is left alone for a while: no other thread is lost to it.
    let turns = files.storage.through.as_ref().expect("reads through").turns();
    assert_eq!(turns.available_permits(), TURNS - 1);
    assert_eq!(all(opened(&files, &entry).await.content).await, content);
    assert_eq!(turns.available_permits(), TURNS - 1);
    // The thread that waits goes on.
    drop(pipe);
    kept(&files).await;
    machine.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_breaks_off_is_not_kept() {
    let machine = Machine::usual().await;
    let files = replica(&machine);
    let long = bytes(3 << 20, 7);
    let entry = written(&files, "long", &long).await;
    let mut open = opened(&files, &entry).await;
    open.content.next().await.expect("begins").expect("reads");
    drop(open);
    kept(&files).await;
    assert!(!place(&machine, &files, &long).exists());
    let folder = place(&machine, &files, &long);
    let left = fs::read_dir(folder.parent().expect("has one")).expect("reads").count();
    assert_eq!(left, 0, "no draft is left of it");
    machine.end().await;
}
