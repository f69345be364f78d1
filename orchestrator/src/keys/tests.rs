// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::store::tests::Database;
use std::os::unix::fs::PermissionsExt;

async fn open(given: GivenKeys, folder: &Path, store: &Store) -> Result<InstallationKeys, KeysError> {
    InstallationKeys::open(given, folder, store).await
}

#[tokio::test]
async fn keys_are_made_once_and_are_ours_alone() {
    let (database, folder) = (Database::sqlite().await, tempfile::tempdir().expect("a folder"));
    let path = folder.path().join("keys");
    let first = open(GivenKeys::default(), &path, &database.store).await.expect("opens");
    let again = open(GivenKeys::default(), &path, &database.store).await.expect("opens");
    assert_eq!(first.token.kid(), again.token.kid());
    assert_eq!(first.artefact_public_key(), again.artefact_public_key());
    assert_eq!(first.digest(b"x"), again.digest(b"x"), "the root secret is the same");
    assert_eq!(first.key_hash(b"x"), again.key_hash(b"x"));
    assert_ne!(first.digest(b"x"), hex(&first.key_hash(b"x")), "no key serves two purposes");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&path).expect("readable").flatten() {
        assert_eq!(entry.metadata().expect("is there").permissions().mode() & 0o777, 0o600);
        names.push(entry.file_name().into_string().expect("text"));
    }
    names.sort_unstable();
    assert_eq!(names, ["artefact-key", "master-key", "token-signing-key"], "no drafts are left");
    assert_eq!(std::fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn another_master_key_is_refused_with_what_to_do() {
    let (database, folder) = (Database::sqlite().await, tempfile::tempdir().expect("a folder"));
    open(GivenKeys::default(), folder.path(), &database.store).await.expect("opens");
    let given = GivenKeys { master: Some(Secret::new(vec![7; KEY_BYTES])), ..GivenKeys::default() };
    let refused = open(given, folder.path(), &database.store).await.expect_err("refused");
    let source = std::error::Error::source(&refused).expect("a cause").to_string();
    assert!(source.contains("POSTERN_MASTER_KEY"), "{source}");
    let given = GivenKeys { master: Some(Secret::new(vec![7; 31])), ..GivenKeys::default() };
    assert!(matches!(open(given, folder.path(), &database.store).await, Err(KeysError::MasterLength)));
}

#[tokio::test]
async fn a_damaged_key_file_is_never_replaced() {
    let (database, folder) = (Database::sqlite().await, tempfile::tempdir().expect("a folder"));
    open(GivenKeys::default(), folder.path(), &database.store).await.expect("opens");
    for name in ["master-key", "artefact-key", "token-signing-key"] {
        let whole = std::fs::read(folder.path().join(name)).expect("is there");
        std::fs::write(folder.path().join(name), b"damaged").expect("writes");
        let refused = open(GivenKeys::default(), folder.path(), &database.store).await;
        assert!(matches!(refused, Err(KeysError::Malformed { .. })), "{name}: {refused:?}");
        assert_eq!(std::fs::read(folder.path().join(name)).expect("is there"), b"damaged");
        std::fs::write(folder.path().join(name), whole).expect("writes");
    }
}

#[tokio::test]
async fn replaced_token_keys_still_verify_and_debug_output_shows_none() {
    let (database, folder) = (Database::sqlite().await, tempfile::tempdir().expect("a folder"));
    let key = |byte| SigningKey::new(vec![byte; 32]).expect("strong");
    let given = GivenKeys { token: Some(key(b'n')), old_tokens: vec![key(b'o')], master: None };
    let keys = open(given, folder.path(), &database.store).await.expect("opens");
    let kids: Vec<&str> = keys.token_keys().map(SigningKey::kid).collect();
    assert_eq!(kids, [key(b'n').kid(), key(b'o').kid()]);
    assert!(!format!("{keys:?}").contains("nnnn"));
}
