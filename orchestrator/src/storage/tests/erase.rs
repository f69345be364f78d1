// SPDX-License-Identifier: Apache-2.0
//! Users who are erased while others write, list and hold.

use super::*;
use crate::store::{Action, AuditEntry, BegunErasure, HoldRow, SetHold};

const SOON: Duration = Duration::from_millis(100);

fn refused<Answer: std::fmt::Debug>(outcome: &Result<Answer, StorageError>) {
    assert!(matches!(outcome, Err(StorageError::BeingErased)), "{outcome:?}");
}

pub(super) async fn nothing_is_written_of_a_user_who_is_being_erased(bench: &Bench) {
    let (files, other) = (bench.user("leaving"), bench.user("staying"));
    put(&files, "f", &Condition::Nothing, "1").await.expect("writes");
    // Poured before the erasure, and given its name after: as an upload that is completed beside it.
    let large = bytes(usize::try_from(PART_BYTES / 4).expect("fits"), 3);
    let (begun, erasure) = tokio::sync::oneshot::channel();
    let slow = stream::once(async { Ok(large) }).chain(stream::once(async {
        erasure.await.expect("begins");
        Ok(Bytes::from_static(b"the last of it"))
    }));
    let writing = async {
        files.write(&by(), &path("large"), &Condition::Anything, NewFile::default(), slow.boxed()).await
    };
    let erasing = async {
        assert_eq!(files.begin_erasure(clock::now()).await.expect("begins"), BegunErasure::Begun);
        begun.send(()).expect("somebody writes");
    };
    let (written, ()) = tokio::join!(writing, erasing);
    refused(&written);
    refused(&put(&files, "f", &Condition::Anything, "2").await);
    refused(&files.remove(&by(), &path("f"), &Condition::Anything).await);
    refused(&files.reshape(&by(), vec![Edit::Folder(path("d"), 0o755)]).await);
    let hold = HoldRow {
        owner: (*files.owner).clone(),
        reason: "case 7".to_owned(),
        set_by: "key:x".to_owned(),
        set_at: crate::store::whole_micros(clock::now()),
    };
    let audit = AuditEntry::new(clock::now(), None, Action::HoldSet, Actor::Orchestrator);
    crate::store::tests::make(&bench.database.store, "acme").await;
    assert_eq!(files.hold(&hold, &audit).await.expect("answers"), SetHold::BeingErased);
    put(&other, "f", &Condition::Nothing, "1").await.expect("the control: another user writes");

    // What a list finds meanwhile is not written down.
    let notes = objects::Notes::default();
    let key = files.prefix.file(&path("found"));
    let objects = &bench.storage.objects;
    objects.put(&key, &Condition::Anything, &notes, Bytes::from_static(b"new")).await.expect("puts");
    files.list().await.expect("lists");
    let row = bench.database.store.file(&files.owner, &path("found")).await.expect("reads");
    assert_eq!(row, None);
    bench.storage.erase_user(&files.owner).await.expect("erases");
    bench.database.store.erase_user(&files.owner, &erased()).await.expect("erases");
    assert_eq!(files.list().await.expect("lists"), Listing::default());
    put(&files, "f", &Condition::Nothing, "3").await.expect("whoever comes back begins anew");
}

pub(super) async fn an_erasure_waits_for_who_writes(bench: &Bench) {
    let files = bench.user("waiting");
    let by = by();
    let changing = files.changing(&by, [&path("f")]).await.expect("begins");
    let mut begun = Box::pin(files.begin_erasure(clock::now()));
    assert!(tokio::time::timeout(SOON, &mut begun).await.is_err(), "somebody writes");
    drop(changing);
    assert_eq!(begun.await.expect("begins"), BegunErasure::Begun);
}
