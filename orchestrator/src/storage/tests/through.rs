// SPDX-License-Identifier: Apache-2.0
//! What syncs of a cluster get out of the cache that orchestrators share, and what comes into it.

use super::cache::Machine;
use super::*;
use crate::storage::through::{KEEPS, LONGEST, LOOKS};
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
    let through = files.storage.through.as_ref().expect("reads through");
    drop(through.keeps.acquire_many(u32::try_from(KEEPS).expect("fits")).await.expect("stays open"));
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
    let longest = bytes(usize::try_from(LONGEST).expect("fits"), 7);
    let mut entries = Vec::new();
    for (at, content) in [("d/small", Bytes::from_static(b"few")), ("longest", longest)] {
        entries.push((written(&one, at, &content).await, content));
    }
    for (entry, content) in &entries {
        assert!(!place(&machine, &one, content).exists(), "what is written is not read yet");
        let before = machine.asked();
        assert_eq!(all(opened(&one, entry).await.content).await, *content);
        assert!(machine.asked() > before, "the control: it came from the store");
        kept(&one).await;
    }
    let empty = written(&one, "empty", &Bytes::new()).await;
    entries.push((empty, Bytes::new()));
    let before = machine.asked();
    for (entry, content) in &entries {
        let open = opened(&other, entry).await;
        assert_eq!((open.size, open.digest), (entry.size, entry.digest));
        assert_eq!(all(open.content).await, *content);
    }
    // More at once than there are threads for.
    let small = &entries[0].0;
    let many = stream::iter((0..4 * LOOKS).map(|_| opened(&other, small))).buffer_unordered(4 * LOOKS);
    assert_eq!(many.count().await, 4 * LOOKS);
    assert_eq!(machine.asked(), before, "nothing was asked of the store");

    // The rest of a file, and a version that is no more, are the store's to give.
    let (long, content) = &entries[1];
    let rest = other.open(&long.path, 100, &long.version).await.expect("opens");
    assert_eq!(all(rest.content).await, content.slice(100..));
    written(&one, "d/small", &Bytes::from_static(b"new")).await;
    let old = other.open(&small.path, 0, &small.version).await.map(drop);
    assert!(matches!(old, Err(StorageError::Conflict { .. })), "{old:?}");
    machine.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_large_or_breaks_off_is_not_kept() {
    let machine = Machine::usual().await;
    let files = replica(&machine);
    let large = bytes(usize::try_from(LONGEST + 1).expect("fits"), 7);
    let entry = written(&files, "large", &large).await;
    assert_eq!(all(opened(&files, &entry).await.content).await, large);
    kept(&files).await;
    assert!(!place(&machine, &files, &large).exists());
    let few = Bytes::from_static(b"few");
    let entry = written(&files, "few", &few).await;
    drop(opened(&files, &entry).await);
    kept(&files).await;
    assert!(!place(&machine, &files, &few).exists());
    machine.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_of_the_cache_is_never_taken_for_the_real_one() {
    let machine = Machine::usual().await;
    let files = replica(&machine);
    let content = bytes(300_000, 7);
    let entry = written(&files, "f", &content).await;
    let (cut, bent) = (&content[..299_999], [&content[..299_999], b"x"].concat());
    for bad in [cut, &bent[..], &b""[..]] {
        all(opened(&files, &entry).await.content).await;
        kept(&files).await;
        fs::write(place(&machine, &files, &content), bad).expect("is there");
        assert_eq!(all(opened(&files, &entry).await.content).await, content, "compared before it is told");
        kept(&files).await;
        let before = machine.asked();
        assert_eq!(all(opened(&files, &entry).await.content).await, content);
        assert_eq!(machine.asked(), before, "it made room for a good one");
    }
    machine.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_being_erased_leaves_nothing_in_the_cache() {
    let machine = Machine::usual().await;
    let files = replica(&machine);
    let content = Bytes::from_static(b"few");
    let entry = written(&files, "f", &content).await;
    // As reads that began before the erasure, and end while it is under way, and after.
    let (first, second) = (opened(&files, &entry).await, opened(&files, &entry).await);
    assert_eq!(files.begin_erasure(clock::now()).await.expect("begins"), BegunErasure::Begun);
    assert_eq!(all(first.content).await, content);
    kept(&files).await;
    assert!(!place(&machine, &files, &content).exists());
    machine.storage.erase_user(&files.owner).await.expect("erases");
    machine.store().erase_user(&files.owner, &erased()).await.expect("erases");
    assert_eq!(all(second.content).await, content);
    kept(&files).await;
    assert!(!place(&machine, &files, &content).exists());
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
    let through = files.storage.through.clone().expect("reads through");
    assert_eq!(through.looks.available_permits(), LOOKS - 1);
    assert_eq!(all(opened(&files, &entry).await.content).await, content);
    assert_eq!((through.looks.available_permits(), through.keeps.available_permits()), (LOOKS - 1, KEEPS));
    // The thread that waits goes on.
    drop(pipe);
    drop(through.looks.acquire_many(u32::try_from(LOOKS).expect("fits")).await.expect("stays open"));
    machine.end().await;
}
