// SPDX-License-Identifier: Apache-2.0
//! Users who are being erased, what may not come beside that, and who waits for whom.

use super::*;

on_each_database!(
    who_has_a_user_alone_waits_for_all_and_all_for_them,
    nothing_comes_of_a_user_who_is_being_erased,
    of_a_hold_an_erasure_and_a_new_sandbox_one_is_first,
    a_hold_and_the_end_of_its_tenant_exclude_each_other,
);

fn owner() -> FileOwner {
    let new = sandbox(1, "c1");
    FileOwner { tenant: new.tenant, user: new.user_id }
}

async fn begin(store: &Store) -> BegunErasure {
    let held = store.hold_files(("u", Share::Alone), &[]).await.expect("holds");
    store.begin_erasure(held, &owner(), now()).await.expect("answers")
}

fn case() -> HoldRow {
    let (reason, set_by) = ("case 7".to_owned(), "key:x".to_owned());
    HoldRow { owner: owner(), reason, set_by, set_at: whole_micros(now()) }
}

async fn hold(store: &Store) -> SetHold {
    let held = store.hold_files(("u", Share::Together), &[]).await.expect("holds");
    store.set_hold(held, &case(), &audit(Action::HoldSet)).await.expect("answers")
}

async fn end(store: &Store, id: &SandboxId) {
    go(store, id, State::Creating, State::Destroying(Outcome::Failed)).await;
    go(store, id, State::Destroying(Outcome::Failed), State::Failed).await;
}

async fn erase(store: &Store) {
    store.erase_user(&owner(), &audit(Action::UserErased)).await.expect("answers");
}

async fn who_has_a_user_alone_waits_for_all_and_all_for_them(store: &Store) {
    const SOON: Duration = Duration::from_millis(200);
    let hold = |user: &'static str, share| store.hold_files((user, share), &[]);
    let (one, two) = (hold("u", Share::Together).await, hold("u", Share::Together).await);
    let (one, two) = (one.expect("holds"), two.expect("beside the other"));
    assert!(tokio::time::timeout(SOON, hold("u", Share::Alone)).await.is_err(), "two are there");
    drop(one);
    assert!(tokio::time::timeout(SOON, hold("u", Share::Alone)).await.is_err(), "one is there");
    drop(two);
    let alone = hold("u", Share::Alone).await.expect("holds");
    for share in [Share::Together, Share::Alone] {
        assert!(tokio::time::timeout(SOON, hold("u", share)).await.is_err(), "{share:?}");
    }
    hold("u2", Share::Alone).await.expect("another user is another lock");
    drop(alone);
    hold("u", Share::Together).await.expect("nobody is left");
}

async fn nothing_comes_of_a_user_who_is_being_erased(store: &Store) {
    let (first, second) = (sandbox(1, "c1"), sandbox(2, "c2"));
    assert!(add(store, &first).await);
    assert_eq!(begin(store).await, BegunErasure::Lives(vec![first.id.clone()]));
    assert!(!store.is_being_erased(&owner()).await.expect("answers"));
    end(store, &first.id).await;
    assert_eq!(hold(store).await, SetHold::Set);
    assert!(matches!(begin(store).await, BegunErasure::Held(held) if held.reason == "case 7"));
    store.release_hold(&owner(), &audit(Action::HoldReleased)).await.expect("answers");

    for _again in 0..2 {
        assert_eq!(begin(store).await, BegunErasure::Begun);
    }
    assert!(store.is_being_erased(&owner()).await.expect("answers"));
    assert_eq!(hold(store).await, SetHold::BeingErased);
    assert_eq!(store.hold_on(&owner()).await.expect("answers"), None);
    let quotas = [Quotas::default(), Quotas { sandboxes: Some(9), ..Quotas::default() }];
    for quotas in &quotas {
        assert_eq!(added(store, &second, quotas).await, AddedSandbox::BeingErased);
    }
    let other = NewSandbox { user_id: UserId::parse("bob").expect("an id"), ..sandbox(3, "c3") };
    assert_eq!(added(store, &other, &Quotas::default()).await, AddedSandbox::Added, "the control");

    erase(store).await;
    assert!(!store.is_being_erased(&owner()).await.expect("answers"));
    assert_eq!(added(store, &second, &Quotas::default()).await, AddedSandbox::Added, "they may come back");
    assert_eq!(hold(store).await, SetHold::Set);
}

async fn of_a_hold_an_erasure_and_a_new_sandbox_one_is_first(store: &Store) {
    make(store, "acme").await;
    for number in 0..12 {
        let new = sandbox(number, &format!("c{number}"));
        let (begun, held, came) = tokio::join!(begin(store), hold(store), async {
            added(store, &new, &Quotas::default()).await
        });
        let is_erased = begun == BegunErasure::Begun;
        assert!(!(is_erased && held == SetHold::Set), "{begun:?} {held:?}");
        assert!(!(is_erased && came == AddedSandbox::Added), "{begun:?} {came:?}");
        if came == AddedSandbox::Added {
            end(store, &new.id).await;
        }
        if held == SetHold::Set {
            store.release_hold(&owner(), &audit(Action::HoldReleased)).await.expect("answers");
        }
        erase(store).await;
    }
}

async fn a_hold_and_the_end_of_its_tenant_exclude_each_other(store: &Store) {
    let tenants: Vec<TenantId> =
        (0..8).map(|number| TenantId::parse(&format!("t{number}")).expect("a name")).collect();
    for name in &tenants {
        make(store, name.as_str()).await;
        let mut hold = case();
        hold.owner.tenant = name.clone();
        let set = async {
            let held = store.hold_files(("u", Share::Together), &[]).await.expect("holds");
            store.set_hold(held, &hold, &audit(Action::HoldSet)).await.expect("answers")
        };
        let entry = audit(Action::TenantRemoved);
        let (set, removed) = tokio::join!(set, store.remove_tenant(name, &entry));
        match (set, removed.expect("answers")) {
            (SetHold::Set, RemovedTenant::Held(1)) | (SetHold::NoTenant, RemovedTenant::Removed) => {}
            other => panic!("{other:?}"),
        }
    }
}
