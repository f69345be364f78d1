// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::storage::objects::Notes;
use postern_common::id::SandboxId;

fn sandbox(letter: char) -> SandboxId {
    format!("sandbox-{}", String::from(letter).repeat(12)).parse().expect("an id")
}

fn from(sandbox: &SandboxId) -> Writer {
    Writer { sandbox: Some(sandbox.clone()), ..Writer::new(Actor::Sandbox(sandbox.clone())) }
}

/// As if we had died between the objects and their rows.
async fn forget_rows(bench: &Bench, files: &UserFiles) {
    bench.database.store.erase_user(&files.owner, &erased()).await.expect("erases");
}

pub(super) async fn a_write_that_the_database_never_heard_of_is_its_sandboxs(bench: &Bench) {
    let (one, other) = (sandbox('a'), sandbox('b'));
    for (user, size) in [("own-small", 5), ("own-large", 10 << 20)] {
        let files = bench.user(user);
        let written = files
            .write(&from(&one), &path("f"), &Condition::Nothing, NewFile::default(), pieces(&bytes(size, 3)))
            .await
            .expect("writes");
        let version = written.version;
        let own = |who: SandboxId, known: Option<Version>| {
            let files = files.clone();
            async move { files.own_version(&path("f"), &who, known).await.expect("looks") }
        };
        assert_eq!(own(other.clone(), None).await, None, "somebody else's");
        assert_eq!(own(one.clone(), Some(version.clone())).await, Some(version.clone()), "known to be");
        forget_rows(bench, &files).await;
        assert_eq!(own(one.clone(), None).await, Some(version.clone()), "{size} bytes");
        // The list finds it, and writes it down as found: it is still its.
        assert_eq!(names(&files.list().await.expect("lists")), ["f"]);
        assert_eq!(own(one.clone(), None).await, Some(version.clone()));
        assert_eq!(own(other.clone(), None).await, None);
        put(&files, "f", &Condition::Version(version.clone()), "by a key").await.expect("writes");
        assert_eq!(own(one.clone(), Some(version)).await, None, "somebody wrote since");
    }
}

pub(super) async fn a_note_is_believed_only_of_what_it_was_written_with(bench: &Bench) {
    let (files, one) = (bench.user("notes"), sandbox('a'));
    let content = whole(Bytes::from_static(b"mine"));
    files
        .write(&from(&one), &path("f"), &Condition::Nothing, NewFile::default(), content)
        .await
        .expect("writes");
    forget_rows(bench, &files).await;
    let objects = &bench.storage.objects;
    let (_, notes) = objects.find(&files.prefix.file(&path("f"))).await.expect("looks").expect("is there");
    let is_own = |at: &'static str| {
        let (files, one) = (files.clone(), one.clone());
        async move { files.own_version(&path(at), &one, None).await.expect("looks").is_some() }
    };
    let put = |at: &'static str, notes: Notes, bytes: &'static [u8]| {
        let key = files.prefix.file(&path(at));
        async move { objects.put(&key, &Condition::Anything, &notes, Bytes::from_static(bytes)).await }
    };
    assert!(is_own("f").await, "the control");
    put("copied", notes.clone(), b"mine").await.expect("writes");
    assert!(!is_own("copied").await, "a copy under another name, attributes and all");
    put("f", notes.clone(), b"mine, and a line of another's").await.expect("writes");
    assert!(!is_own("f").await, "other bytes than the note tells");
    put("f", Notes { writer: None, ..notes }, b"mine").await.expect("writes");
    assert!(!is_own("f").await, "no writer");
    assert!(!is_own("never").await);
}

/// An object under a digest that no manifest names is in no list, so it was not acknowledged.
pub(super) async fn a_file_with_an_odd_name_is_there_when_the_manifest_knows_it(bench: &Bench) {
    let (files, one) = (bench.user("own-odd"), sandbox('a'));
    let (odd, key) = (path("a\nb"), files.prefix.file(&path("a\nb")));
    let content = Bytes::from_static(b"x");
    let notes = Notes {
        digest: Some(Digest::of(&content)),
        writer: crate::storage::own::note(&from(&one), &key),
        ..Notes::default()
    };
    // As if we had died between the object and the manifest.
    bench.storage.objects.put(&key, &Condition::Nothing, &notes, content.clone()).await.expect("writes");
    assert_eq!(files.find(&odd).await.expect("looks"), None);
    assert_eq!(names(&files.list().await.expect("lists")), Vec::<&str>::new());
    let own = files.own_version(&odd, &one, None).await.expect("looks").expect("its sandbox puts it again");
    let (writer, condition) = (from(&one), Condition::Version(own));
    files.write(&writer, &odd, &condition, NewFile::default(), whole(content)).await.expect("writes");
    assert!(files.find(&odd).await.expect("looks").is_some());
    assert_eq!(names(&files.list().await.expect("lists")), ["a\nb"]);
}

/// A folder's file keeps its attributes when somebody writes into it.
#[tokio::test]
async fn a_file_that_was_written_into_is_its_sandboxs_no_more() {
    let bench = Bench::new(Server::folder()).await;
    let (files, one) = (bench.user("u"), sandbox('a'));
    for size in [4, 10 << 20] {
        let content = pieces(&bytes(size, 5));
        files
            .write(&from(&one), &path("f"), &Condition::Anything, NewFile::default(), content)
            .await
            .expect("writes");
        forget_rows(&bench, &files).await;
        let own = async || files.own_version(&path("f"), &one, None).await;
        assert!(own().await.expect("looks").is_some(), "the control");
        let at = bench.server.folder.path().join("files").join(files.prefix.file(&path("f")).as_str());
        let mut there = std::fs::read(&at).expect("reads");
        there[0] ^= 1;
        std::fs::write(&at, &there).expect("writes");
        assert_eq!(own().await.expect("looks"), None, "{size} bytes");
    }
}
