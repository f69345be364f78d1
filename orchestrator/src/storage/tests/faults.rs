// SPDX-License-Identifier: Apache-2.0
//! What goes wrong: wrong credentials, URLs that are bent, a folder that was tampered with.

use super::servers::{S3_SECRET, Server, put as send, send as request};
use super::*;
use postern_common::settings::StorageKind;
use std::error::Error as _;
use std::os::unix::fs::symlink;
use url::Url;

/// All that an error tells, as a log has it.
fn told(error: &StorageError) -> String {
    let mut text = format!("{error} {error:?}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(" {error} {error:?}"));
        cause = error.source();
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_credentials_are_told_and_never_shown() {
    let Some(server) = Server::s3().await else { return };
    let bench = Bench::new(server).await;
    put(&bench.user("u"), "control", &Condition::Nothing, "x").await.expect("the right secret works");
    let wrong = "not-the-secret-but-secret-too";
    let settings = bench.server.with(|chosen| {
        chosen.credentials.insert("AWS_SECRET_ACCESS_KEY".to_owned(), wrong.to_owned().into());
    });
    let objects = settings.connect().expect("is only tried later");
    let storage = Storage::new(objects, bench.database.store.clone(), Quota::default());
    let refused = put(&storage.of(&tenant("acme"), &user("u")), "f", &Condition::Nothing, "x")
        .await
        .expect_err("is refused");
    let text = told(&refused);
    assert!(text.contains("SignatureDoesNotMatch") || text.contains("403"), "{text}");
    for secret in [wrong, S3_SECRET, "Signature="] {
        assert!(!text.contains(secret), "{text}");
    }
    assert!(!format!("{storage:?} {settings:?}").contains(wrong));
}

/// A SAS is in every URL, and a client's complaints name URLs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signature_in_a_url_is_not_in_what_is_told_of_it() {
    let server = Server::folder();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("an address");
    let endpoint = format!("http://{closed}/account");
    let settings = server.with(|chosen| {
        chosen.kind = StorageKind::Azure;
        chosen.bucket = Some("files".to_owned());
        for (name, value) in [
            ("AZURE_STORAGE_ENDPOINT", endpoint.as_str()),
            ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
            ("AZURE_STORAGE_SAS_KEY", "sv=2024-01-01&sp=rwdl&sig=c2VjcmV0LXNpZ25hdHVyZQ%3D%3D"),
        ] {
            chosen.credentials.insert(name.to_owned(), value.to_owned().into());
        }
    });
    let database = Database::sqlite().await;
    let storage =
        Storage::new(settings.connect().expect("connects"), database.store.clone(), Quota::default());
    let refused =
        storage.of(&tenant("acme"), &user("u")).find(&path("f")).await.expect_err("nobody is there");
    let text = told(&refused);
    assert!(text.contains("error sending request"), "the control: the cause is told: {text}");
    for secret in ["sig=", "c2VjcmV0", "sv=2024"] {
        assert!(!text.contains(secret), "{text}");
    }
    let url = storage.part_url(&UploadId::generate(), 0, Duration::from_secs(60)).await.expect("answers");
    assert_eq!(url, None, "who has a signature only cannot sign: our own URLs are used");
}

#[tokio::test]
async fn settings_that_do_not_fit_are_told_at_the_start() {
    let server = Server::folder();
    let refused = |settings: StorageSettings| settings.connect().expect_err("is refused").to_string();
    let no_bucket = refused(server.with(|chosen| chosen.kind = StorageKind::S3));
    assert!(no_bucket.contains("STORAGE_BUCKET"), "{no_bucket}");
    let plain = refused(server.with(|chosen| {
        chosen.kind = StorageKind::S3;
        chosen.bucket = Some("b".to_owned());
        chosen.credentials.insert("AWS_ENDPOINT_URL".to_owned(), "http://s3.example".to_owned().into());
    }));
    assert!(plain.contains("not encrypted"), "{plain}");
    let government = refused(server.with(|chosen| {
        chosen.kind = StorageKind::Azure;
        chosen.bucket = Some("b".to_owned());
        chosen.azure_cloud = postern_common::settings::AzureCloud::Government;
    }));
    assert!(government.contains("AZURE_STORAGE_ACCOUNT_NAME"), "{government}");
    let folder = refused(server.with(|chosen| chosen.bucket = Some("/proc/nowhere".to_owned())));
    assert!(folder.contains("/proc/nowhere"), "{folder}");
}

#[tokio::test]
async fn azure_government_is_another_host() {
    let server = Server::folder();
    let settings = server.with(|chosen| {
        chosen.kind = StorageKind::Azure;
        chosen.bucket = Some("files".to_owned());
        chosen.azure_cloud = postern_common::settings::AzureCloud::Government;
        for (name, value) in
            [("AZURE_STORAGE_ACCOUNT_NAME", "acct"), ("AZURE_STORAGE_ACCOUNT_KEY", "a2V5a2V5a2V5")]
        {
            chosen.credentials.insert(name.to_owned(), value.to_owned().into());
        }
    });
    let database = Database::sqlite().await;
    let storage =
        Storage::new(settings.connect().expect("connects"), database.store.clone(), Quota::default());
    let url = storage
        .part_url(&UploadId::generate(), 0, Duration::from_secs(60))
        .await
        .expect("signs")
        .expect("a URL");
    assert_eq!(url.host_str(), Some("acct.blob.core.usgovcloudapi.net"));
    assert_eq!(url.scheme(), "https");
}

/// A presigned URL allows one method on one object until it expires.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_presigned_url_allows_what_it_was_made_for_and_nothing_else() {
    for server in [Server::s3().await, Server::azure().await].into_iter().flatten() {
        let bench = Bench::new(server).await;
        let (victim, upload) = (bench.user("victim"), UploadId::generate());
        put(&victim, "f", &Condition::Nothing, "theirs").await.expect("writes");
        let headers = bench.storage.part_headers();
        let url =
            bench.storage.part_url(&upload, 0, Duration::from_secs(60)).await.expect("signs").expect("a URL");
        let bent =
            |from: &str, to: &str| -> Url { url.as_str().replacen(from, to, 1).parse().expect("a URL") };
        let staged = format!("staging/{upload}/0");
        assert!(url.as_str().contains(&staged), "{url}");
        for (what, other) in [
            ("another part", bent(&staged, &format!("staging/{upload}/1"))),
            ("a user's file", bent(&staged, victim.prefix.file(&path("f")).as_str())),
            (
                "up and across",
                bent(&staged, &format!("staging/{upload}/0/../../../tenants/acme/users/victim/files/f")),
            ),
            ("encoded slashes", bent(&staged, &format!("staging/{upload}/0%2f..%2f..%2ff"))),
            ("upper case", bent(&staged, &staged.to_uppercase())),
        ] {
            let sent = send(&other, headers, Bytes::from_static(b"mine")).await;
            assert!(sent.is_err(), "{what}: {other}");
        }
        assert!(request("DELETE", &url, &[], Bytes::new()).await >= 400, "another method");
        assert!(request("GET", &url, &[], Bytes::new()).await >= 400, "another method");
        assert_eq!(text(&victim, "f").await, "theirs");
        send(&url, headers, Bytes::from_static(b"mine")).await.expect("the control: what it was made for");
    }
}

/// The folder is ours; whoever gets into it nevertheless leads us nowhere else.
#[tokio::test]
async fn a_link_in_the_folder_is_never_followed() {
    let bench = Bench::new(Server::folder()).await;
    let files = bench.user("u");
    put(&files, "d/f", &Condition::Nothing, "inside").await.expect("writes");
    let outside = tempfile::tempdir().expect("a folder");
    std::fs::write(outside.path().join("secret"), "outside").expect("writes");
    let top = bench.server.folder.path().join("files/tenants/acme/users/u/files");
    symlink(outside.path(), top.join("folder-link")).expect("links");
    symlink(outside.path().join("secret"), top.join("file-link")).expect("links");
    std::fs::hard_link(outside.path().join("secret"), top.join("hard")).expect("links");
    for at in ["folder-link/secret", "file-link"] {
        let read = files.read(&path(at), None, None).await;
        assert!(matches!(read, Err(StorageError::NotFound(_))), "{at}: {read:?}");
        let written = put(&files, at, &Condition::Anything, "x").await;
        let there = std::fs::read_to_string(outside.path().join("secret")).expect("is there");
        assert_eq!(there, "outside", "{at}: {written:?}");
    }
    put(&files, "hard", &Condition::Anything, "replaced").await.expect("writes");
    assert_eq!(std::fs::read_to_string(outside.path().join("secret")).expect("is there"), "outside");
    let listing = files.list().await.expect("lists");
    assert!(!names(&listing).iter().any(|name| name.starts_with("folder-link")), "{listing:?}");
    // The control: a file that lies there as such is listed.
    std::fs::write(top.join("plain"), "x").expect("writes");
    assert!(names(&files.list().await.expect("lists")).contains(&"plain"));
}

/// Files and folders as the folder had them before there was a manifest.
#[tokio::test]
async fn files_that_lay_in_the_folder_before_are_found_with_mode_and_empty_folders() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new(Server::folder()).await;
    let files = bench.user("old");
    let top = bench.server.folder.path().join("files/tenants/acme/users/old/files");
    std::fs::create_dir_all(top.join("bin/empty")).expect("makes");
    std::fs::write(top.join("bin/run"), "#!").expect("writes");
    std::fs::write(top.join("note"), "x").expect("writes");
    std::fs::set_permissions(top.join("bin/run"), std::fs::Permissions::from_mode(0o700)).expect("sets");
    let listing = files.list().await.expect("lists");
    let modes: Vec<_> = listing.files.iter().map(|file| (file.path.as_str(), file.mode)).collect();
    assert_eq!(modes, [("bin/run", 0o755), ("note", 0o644)]);
    assert_eq!(listing.folders, [(path("bin/empty"), 0o755)]);
    put(&files, "bin/empty", &Condition::Nothing, "a file now").await.expect("an empty folder gives way");
}

#[tokio::test]
async fn a_draft_that_a_crash_left_is_not_a_file() {
    let bench = Bench::new(Server::folder()).await;
    let files = bench.user("u");
    put(&files, "d/f", &Condition::Nothing, "x").await.expect("writes");
    let top = bench.server.folder.path().join("files/tenants/acme/users/u/files");
    std::fs::write(top.join("d/.postern-draft-1-2"), "half").expect("writes");
    assert_eq!(names(&files.list().await.expect("lists")), ["d/f"]);
    assert!(FilePath::parse("d/.postern-draft-1-2").is_err());
}

/// Sets when a draft was written last.
fn age(at: &std::path::Path, hours: i64) {
    use rustix::fs::{Timespec, Timestamps, futimens};
    let since = Timespec { tv_sec: clock::now().as_second() - hours * 3600, tv_nsec: 0 };
    let times = Timestamps { last_access: since, last_modification: since };
    futimens(std::fs::File::open(at).expect("opens"), &times).expect("ages");
}

#[tokio::test]
async fn a_draft_that_a_crash_left_goes_in_time_and_is_in_no_ones_way() {
    let bench = Bench::new(Server::folder()).await;
    let files = bench.user("u");
    put(&files, "control", &Condition::Nothing, "x").await.expect("writes");
    let top = bench.server.folder.path().join("files/tenants/acme/users/u/files");
    let draft = |name: &str, hours| {
        let at = top.join(name);
        std::fs::create_dir_all(at.parent().expect("has one")).expect("makes");
        std::fs::write(&at, "half").expect("writes");
        age(&at, hours);
        at
    };
    let (old, new) = (draft("d/e/.postern-draft-1-2", 25), draft("n/.postern-draft-1-3", 23));
    put(&files, "d", &Condition::Nothing, "in its place").await.expect("nobody writes to that draft");
    assert!(!old.exists());
    let refused = put(&files, "n", &Condition::Nothing, "x").await.expect_err("somebody may write still");
    assert!(matches!(refused, StorageError::Obstructed { .. }), "{refused:?}");
    let other = draft("deep/er/.postern-draft-1-4", 25);
    bench.storage.tidy(clock::now()).await.expect("tidies");
    assert!(!other.exists() && !top.join("deep").exists(), "with the folders that were there for it");
    assert!(new.exists());
    let listing = files.list().await.expect("lists");
    assert_eq!(names(&listing), ["control", "d"]);
    // What two processes of one number would have shared: this one is another's.
    let Objects::Folder(one) = &bench.storage.objects else { panic!("it is a folder") };
    let two = folder::Folder::open(&bench.server.folder.path().join("files")).expect("opens");
    let key = files.prefix.file(&path("n/both"));
    let _drafts = (one.begin(&key).expect("begins"), two.begin(&key).expect("begins"));
    let count = std::fs::read_dir(top.join("n")).expect("is there").count();
    assert_eq!(count, 3, "each has a draft of its own");
}

#[tokio::test]
async fn users_files_never_take_the_last_of_the_disk() {
    let bench = Bench::new(Server::folder()).await;
    let Objects::Folder(mut folder) = bench.storage.objects.clone() else { panic!("it is a folder") };
    let roomy = folder.clone();
    folder.free = u64::MAX;
    let full = Storage { objects: Objects::Folder(folder), ..bench.storage.clone() };
    let (files, before) = (full.of(&tenant("acme"), &user("u")), bench.user("u"));
    let run = NewFile { mode: Some(0o755), ..NewFile::default() };
    let content = whole(Bytes::from_static(b"#!"));
    before.write(&by(), &path("run"), &Condition::Nothing, run, content).await.expect("has room");
    for size in [1, content::SMALL_BYTES + 1] {
        let content = whole(bytes(size, 1));
        let refused = files.write(&by(), &path("f"), &Condition::Nothing, NewFile::default(), content).await;
        let refused = told(&refused.expect_err("has no room"));
        assert!(refused.contains("nearly full"), "{refused}");
    }
    assert_eq!(text(&files, "run").await, "#!");
    assert!(files.remove(&by(), &path("run"), &Condition::Something).await.expect("makes room"));
    // A large one that was begun while there was room.
    let key = files.prefix.file(&path("large"));
    let mut draft = roomy.begin(&key).expect("begins");
    draft.free = u64::MAX;
    let refused = (0..9).map(|_| draft.write(&bytes(8 << 20, 1))).find_map(Result::err);
    assert!(refused.is_some_and(|error| error.kind() == io::ErrorKind::StorageFull));
}
