// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::config::Config;
use crate::keys::api::verify;
use postern_common::settings::{Settings, Sources};

fn gateway() -> GatewayName {
    GatewayName::parse("agent-sandbox-kit").expect("a name")
}

async fn prepared(folder: &std::path::Path) -> Prepared {
    Prepared::open(Config::new(folder.to_owned())).await.expect("opens")
}

fn settings(entries: &Entries) -> Result<Settings, String> {
    let environment = entries
        .iter()
        .filter(|(name, _)| *name != PASSWORD)
        .map(|(name, value)| (name.clone(), value.reveal().clone()))
        .collect();
    Settings::resolve(&Sources { environment, ..Sources::default() }).map_err(|mistakes| mistakes.to_string())
}

#[test]
fn keys_that_are_made_are_keys_that_the_programs_take() {
    let made = make(&Key::ALL, Some("kit-postgres:5432")).expect("makes");
    let names: Vec<_> = made.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "DATABASE_URL",
            "POSTERN_MASTER_KEY",
            "POSTERN_SANDBOX_CONTROL_KEY",
            "POSTGRES_PASSWORD",
            "TOKEN_SIGNING_KEY"
        ]
    );
    let settings = settings(&made).expect("all are good");
    assert!(settings.token().signing_key.is_some() && settings.master_key().is_some());
    assert!(settings.sandbox_control_key().is_some());
    let (url, password) = (made["DATABASE_URL"].reveal(), made[PASSWORD].reveal());
    assert_eq!(*url, format!("postgres://postern:{password}@kit-postgres:5432/postern"));
}

#[test]
fn keys_are_never_made_twice_alike() {
    let (one, other) =
        (make(&Key::ALL, Some("p:1")).expect("one"), make(&Key::ALL, Some("p:1")).expect("other"));
    for (name, value) in &one {
        assert_ne!(value.reveal(), other[name].reveal(), "{name}");
    }
}

#[test]
fn only_what_is_wanted_is_made() {
    let made = make(&[Key::Master], None).expect("makes");
    assert_eq!(made.keys().collect::<Vec<_>>(), ["POSTERN_MASTER_KEY"]);
    assert!(matches!(make(&[Key::Database], None), Err(SetupError::NoDatabase)));
}

#[test]
fn a_secret_that_lacks_a_key_is_left_alone_and_told_of() {
    let there = make(&[Key::TokenSigning], None).expect("makes");
    assert_eq!(complete("kit-keys", &there, &[Key::TokenSigning]).expect("has it"), Outcome::WasThere);
    let told = complete("kit-keys", &there, &Key::ALL).expect_err("lacks two").to_string();
    assert!(told.contains("without POSTERN_MASTER_KEY, POSTERN_SANDBOX_CONTROL_KEY, DATABASE_URL"), "{told}");
    assert!(told.contains("kubectl edit secret kit-keys"), "{told}");
}

#[test]
fn a_setting_that_cannot_be_made_is_refused_with_those_that_can() {
    assert_eq!("TOKEN_SIGNING_KEY".parse(), Ok(Key::TokenSigning));
    let told = "STORAGE_BUCKET".parse::<Key>().expect_err("cannot");
    assert_eq!(
        told,
        "`STORAGE_BUCKET` cannot be made; there are TOKEN_SIGNING_KEY, POSTERN_MASTER_KEY, POSTERN_SANDBOX_CONTROL_KEY, DATABASE_URL"
    );
}

#[tokio::test]
async fn a_credential_that_was_made_here_is_believed_and_another_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let prepared = prepared(folder.path()).await;
    let (store, keys) = prepared.parts();
    let first = credential(&prepared, &gateway()).await.expect("makes");
    let first = Credential::parse(first.reveal()).expect("a line");
    assert_eq!(first.name, gateway());
    assert!(stream::believes(store, keys, &gateway(), &first.secret).await.expect("asks"));
    // Its Secret is gone: a new one is made, and the old one ends.
    let second = credential(&prepared, &gateway()).await.expect("makes another");
    let second = Credential::parse(second.reveal()).expect("a line");
    assert!(stream::believes(store, keys, &gateway(), &second.secret).await.expect("asks"));
    assert!(!stream::believes(store, keys, &gateway(), &first.secret).await.expect("asks"));
}

#[tokio::test]
async fn the_first_admin_key_is_everyones_admin() {
    let folder = tempfile::tempdir().expect("a folder");
    let prepared = prepared(folder.path()).await;
    let (store, keys) = prepared.parts();
    let key = admin_key(&prepared).await.expect("makes");
    let caller = verify(keys, store, &key).await.expect("is known");
    assert_eq!((caller.tenant, caller.role), (None, Role::Admin));
}

#[tokio::test]
async fn replicas_with_folders_of_their_own_sign_with_the_same_key() {
    let (one, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let database = Secret::new(format!("sqlite://{}", one.path().join("shared.db").display()));
    let master = Secret::new(vec![7; 32]);
    let open = async |folder: &std::path::Path| {
        let keys = crate::keys::GivenKeys { master: Some(master.clone()), ..Default::default() };
        let config = Config { database_url: Some(database.clone()), keys, ..Config::new(folder.to_owned()) };
        Prepared::open(config).await.expect("opens").keys().artefact_public_key()
    };
    assert_eq!(open(one.path()).await, open(other.path()).await);
}
