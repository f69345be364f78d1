// SPDX-License-Identifier: Apache-2.0
//! Uploads over every store: parts by URLs that the store signs where it can.

use super::*;

pub(super) fn upload(files: &UserFiles, at: &str, content: &Bytes, part_bytes: u64) -> UploadRow {
    let now = clock::now();
    UploadRow {
        id: UploadId::generate(),
        owner: (*files.owner).clone(),
        path: path(at),
        size: u64::try_from(content.len()).expect("fits"),
        part_bytes,
        digest: Some(Digest::of(content)),
        content_type: Some("image/png".to_owned()),
        mode: None,
        condition: Condition::Nothing,
        created_by: "test".to_owned(),
        created_at: now,
        expires_at: now.saturating_add(jiff::SignedDuration::from_secs(60)).expect("a time"),
        completed: None,
    }
}

pub(super) async fn an_upload_becomes_a_file_when_it_is_complete(bench: &Bench) {
    let files = bench.user("uploads");
    let content = bytes(25, 3);
    let row = upload(&files, "picture.png", &content, 10);
    bench.storage.begin_upload(&row, &erased()).await.expect("begins");
    assert_eq!(row.parts(), 3);
    bench.storage.put_part(&row, 0, whole(content.slice(0..10))).await.expect("comes");
    bench.storage.put_part(&row, 2, whole(content.slice(20..25))).await.expect("comes");
    let wrong =
        bench.storage.put_part(&row, 1, whole(content.slice(10..19))).await.expect_err("is too short");
    assert!(matches!(wrong, StorageError::Differs { .. }), "{wrong:?}");
    assert_eq!(bench.storage.arrived(&row).await.expect("looks"), [Some(10), None, Some(5)]);
    let early = bench.storage.complete(&by(), &row).await.expect_err("a part is missing");
    assert!(matches!(early, StorageError::Differs { what: "size", .. }), "{early:?}");
    assert!(files.list().await.expect("lists").files.is_empty(), "nobody sees it before");
    send(bench, &row, 1, bytes(10, 99), "image/png").await;
    let other = bench.storage.complete(&by(), &row).await.expect_err("is something else");
    assert!(matches!(other, StorageError::Differs { what: "digest", .. }), "{other:?}");
    let signs = bench.storage.part_url(&row.id, 1, Duration::from_secs(60)).await.expect("signs").is_some();
    if signs {
        // Our own URLs refuse it when it comes.
        send(bench, &row, 1, content.slice(10..20), "text/html").await;
        let other = bench.storage.complete(&by(), &row).await.expect_err("is of another type");
        assert!(matches!(other, StorageError::Differs { what: "type", .. }), "{other:?}");
    }
    send(bench, &row, 1, content.slice(10..20), "image/png").await;
    let entry = bench.storage.complete(&by(), &row).await.expect("completes");
    assert_eq!(
        (entry.digest, entry.content_type.as_deref()),
        (Some(Digest::of(&content)), Some("image/png"))
    );
    let kept = bench.database.store.upload(&row.id).await.expect("reads").expect("is remembered");
    assert_eq!(kept.completed, Some(entry.version));
    let arrived = bench.storage.arrived(&row).await.expect("looks");
    assert_eq!(arrived, [None, None, None], "its parts are gone");
}

/// Sends a part as a client does: by the store's own URL where it signs one.
async fn send(bench: &Bench, row: &UploadRow, part: u32, content: Bytes, kind: &str) {
    let url = bench.storage.part_url(&row.id, part, Duration::from_secs(60)).await.expect("signs");
    match url {
        None => bench.storage.put_part(row, part, whole(content)).await.expect("comes"),
        Some(url) => {
            let headers = bench.storage.part_headers().iter().copied().chain([("content-type", kind)]);
            let headers: Vec<(&str, &str)> = headers.collect();
            servers::put(&url, &headers, content).await.expect("is taken");
        }
    }
}

pub(super) async fn an_upload_that_nobody_completes_goes(bench: &Bench) {
    let files = bench.user("unclaimed");
    let content = bytes(5, 1);
    let row = upload(&files, "f", &content, 10);
    bench.storage.begin_upload(&row, &erased()).await.expect("begins");
    bench.storage.put_part(&row, 0, whole(content)).await.expect("comes");
    bench.storage.expire_uploads(clock::now()).await.expect("looks");
    assert_eq!(bench.storage.arrived(&row).await.expect("looks"), [Some(5)], "it may still be completed");
    bench.storage.expire_uploads(row.expires_at).await.expect("looks");
    assert_eq!(bench.storage.arrived(&row).await.expect("looks"), [None]);
    assert_eq!(bench.database.store.upload(&row.id).await.expect("reads"), None);
}

/// Whoever has a part's URL can use it until it expires, and nothing leads to what comes then.
pub(super) async fn a_part_that_comes_when_its_upload_is_over_goes_in_time(bench: &Bench) {
    let files = bench.user("late");
    let content = bytes(5, 1);
    let row = upload(&files, "f", &content, 10);
    bench.storage.begin_upload(&row, &erased()).await.expect("begins");
    bench.database.store.forget_upload(&row.id).await.expect("is abandoned");
    send(bench, &row, 0, content, "image/png").await;
    let found = bench.storage.objects.find(&Key::staged(&row.id, 0)).await.expect("looks");
    let written = found.expect("has come").0.written;
    let after = |hours| written.saturating_add(jiff::SignedDuration::from_hours(hours)).expect("a time");
    bench.storage.expire_uploads(after(25)).await.expect("looks");
    assert_eq!(bench.storage.arrived(&row).await.expect("looks"), [Some(5)], "an upload may live for a day");
    bench.storage.expire_uploads(after(50)).await.expect("looks");
    assert_eq!(bench.storage.arrived(&row).await.expect("looks"), [None]);
}
