// SPDX-License-Identifier: Apache-2.0
//! This installation's keys: made on first start, kept in files that only we can read.
//!
//! No key serves two purposes. What is derived (the keyed hash of API keys, the digest that
//! repeats are compared by) comes by HKDF, one label each, from a root secret that the database
//! keeps sealed with the data key. API keys themselves are in [`api`].

pub(crate) mod api;

use crate::seal::{DataKey, KEY_BYTES, Place, SealError};
use crate::store::{Store, StoreError};
use aws_lc_rs::encoding::{AsBigEndian, Curve25519SeedBin};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use aws_lc_rs::{hmac, rand};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD as URL_SAFE};
use postern_common::audit::MarkSigner;
use postern_common::secret::Secret;
use postern_common::token::{SigningKey, Verifier, WeakKey};
use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of a token signing key that we make: as many as its hash has.
const TOKEN_KEY_BYTES: usize = 32;
const ROOT_BYTES: usize = 32;
/// The longest key file that is read.
const FILE_BYTES: u64 = 4096;

/// Keys that the operator gave; what is absent is kept in the data folder.
#[derive(Debug, Default)]
pub struct GivenKeys {
    /// `TOKEN_SIGNING_KEY`.
    pub token: Option<SigningKey>,
    /// `POSTERN_TOKEN_OLD_KEYS`.
    pub old_tokens: Vec<SigningKey>,
    /// `POSTERN_MASTER_KEY`.
    pub master: Option<Secret<Vec<u8>>>,
}

/// The keys could not be read or made.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file or folder of keys.
    #[error("could not use `{}` for keys; check that it is yours and that there is space", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that is not ours.
    #[error("`{}` does not hold a key; restore it from a backup, for what it sealed or signed is lost without it", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
    },
    /// A signing key that is too weak.
    #[error(transparent)]
    Weak(#[from] WeakKey),
    /// `POSTERN_MASTER_KEY` is no key.
    #[error("`POSTERN_MASTER_KEY` needs 32 bytes: make one with `openssl rand -base64 32`")]
    MasterLength,
    /// The root secret does not open.
    #[error("could not open the installation's root secret")]
    Root(#[from] SealError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// This installation's keys.
pub struct InstallationKeys {
    /// Signs session tokens.
    pub(crate) token: SigningKey,
    old_tokens: Vec<SigningKey>,
    /// Seals what the database keeps secret.
    pub(crate) data: Arc<DataKey>,
    artefact: Ed25519KeyPair,
    api_keys: hmac::Key,
    digests: hmac::Key,
    gateways: hmac::Key,
    compiled: hmac::Key,
    urls: hmac::Key,
    marks: Arc<MarkSigner>,
}

impl fmt::Debug for InstallationKeys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("InstallationKeys").field("token", &self.token.kid()).finish_non_exhaustive()
    }
}

impl InstallationKeys {
    /// Takes the given keys and reads, or makes, the rest in `folder`. Blocking for some
    /// milliseconds when it makes them.
    ///
    /// # Errors
    /// [`KeysError`] says which key is wrong and what to do.
    pub(crate) async fn open(given: GivenKeys, folder: &Path, store: &Store) -> Result<Self, KeysError> {
        let made = |source| KeysError::File { path: folder.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(made)?;
        let token = match given.token {
            Some(key) => key,
            None => {
                SigningKey::new(kept(&folder.join("token-signing-key"), TOKEN_KEY_BYTES)?.reveal().clone())?
            }
        };
        let data = match given.master {
            Some(bytes) => DataKey::new(&bytes).ok_or(KeysError::MasterLength)?,
            None => {
                let path = folder.join("master-key");
                DataKey::new(&kept(&path, KEY_BYTES)?).ok_or(KeysError::Malformed { path })?
            }
        };
        let path = folder.join("artefact-key");
        // Replicas have a folder each and one database: what was there first is everyone's.
        let own = data.seal(Place::ArtefactSeed, kept(&path, ROOT_BYTES)?.reveal())?;
        let seed = data.open(Place::ArtefactSeed, &store.fact("artefact_seed", own).await?)?;
        let artefact = Ed25519KeyPair::from_seed_unchecked(seed.reveal())
            .map_err(|_rejected| KeysError::Malformed { path })?;
        let sealed = store.fact("root_secret", data.seal(Place::Root, random(ROOT_BYTES)?.reveal())?).await?;
        let root = data.open(Place::Root, &sealed)?;
        let (api_keys, digests) = (derived(&root, "api-key hashes")?, derived(&root, "digests of repeats")?);
        let gateways = derived(&root, "gateway credential hashes")?;
        let compiled = derived(&root, "compiled filters")?;
        let urls = derived(&root, "signed URLs")?;
        let marks = MarkSigner::from_seed(derived_bytes(&root, "audit checkpoints")?.reveal())
            .map_err(|_rejected| SealError::Damaged)?;
        Ok(Self {
            token,
            old_tokens: given.old_tokens,
            data: Arc::new(data),
            artefact,
            api_keys,
            digests,
            gateways,
            compiled,
            urls,
            marks: Arc::new(marks),
        })
    }

    /// Believes the tokens of this installation.
    #[must_use]
    pub fn verifier(&self) -> Verifier {
        Verifier::new(std::iter::once(&self.token).chain(&self.old_tokens))
    }

    /// Every key whose session tokens are believed: the one that signs first.
    pub fn token_keys(&self) -> impl Iterator<Item = &SigningKey> {
        std::iter::once(&self.token).chain(&self.old_tokens)
    }

    /// What gateways verify compiled filters with.
    #[must_use]
    pub fn artefact_public_key(&self) -> Vec<u8> {
        self.artefact.public_key().as_ref().to_vec()
    }

    /// The seed of the key that signs compiled filters, for code that signs with its own types.
    ///
    /// # Errors
    /// [`KeysError::Root`] if the key does not give it, which a key made from a seed always does.
    pub fn artefact_seed(&self) -> Result<Secret<Vec<u8>>, KeysError> {
        let seed = self.artefact.seed().map_err(|_unspecified| SealError::Damaged)?;
        let bytes = AsBigEndian::<Curve25519SeedBin<'static>>::as_be_bytes(&seed)
            .map_err(|_unspecified| SealError::Damaged)?;
        Ok(Secret::new(bytes.as_ref().to_vec()))
    }

    /// Seals compiled filters, so that what lies on disk is known for what the compiler made.
    pub(crate) fn compiled_key(&self) -> hmac::Key {
        self.compiled.clone()
    }

    /// Signs places of the audit logs' chains.
    pub(crate) const fn marks(&self) -> &Arc<MarkSigner> {
        &self.marks
    }

    /// The keyed hash of an API key's secret.
    fn key_hash(&self, message: &[u8]) -> Vec<u8> {
        hmac::sign(&self.api_keys, message).as_ref().to_vec()
    }

    /// Whether this is the keyed hash of `message`; takes the same time for every answer.
    fn is_key_hash(&self, message: &[u8], hash: &[u8]) -> bool {
        hmac::verify(&self.api_keys, message, hash).is_ok()
    }

    /// The keyed hash of a gateway's secret.
    pub(crate) fn gateway_hash(&self, secret: &[u8]) -> Vec<u8> {
        hmac::sign(&self.gateways, secret).as_ref().to_vec()
    }

    /// Whether this is the keyed hash of a gateway's secret; takes the same time for every answer.
    pub(crate) fn is_gateway_hash(&self, secret: &[u8], hash: &[u8]) -> bool {
        hmac::verify(&self.gateways, secret, hash).is_ok()
    }

    /// The signature of a URL that allows what these fields say and nothing else.
    pub(crate) fn url_signature(&self, fields: &[&str]) -> String {
        URL_SAFE.encode(hmac::sign(&self.urls, &unambiguous(fields)).as_ref())
    }

    /// Whether this is the signature of these fields; takes the same time for every answer.
    pub(crate) fn is_url_signature(&self, fields: &[&str], signature: &str) -> bool {
        let decoded = URL_SAFE.decode(signature);
        decoded.is_ok_and(|tag| hmac::verify(&self.urls, &unambiguous(fields), &tag).is_ok())
    }

    /// A keyed digest, in hex: two values are equal if theirs are, and nobody else can try values.
    #[must_use]
    pub fn digest(&self, message: &[u8]) -> String {
        hex(hmac::sign(&self.digests, message).as_ref())
    }
}

/// Fields as one text that no other fields come to: each with its length before it.
fn unambiguous(fields: &[&str]) -> Vec<u8> {
    fields.iter().flat_map(|field| format!("{}:{field}", field.len()).into_bytes()).collect()
}

/// Bytes in lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let halves = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    halves.filter_map(|half| char::from_digit(half.into(), 16)).collect()
}

/// Bytes that nobody can guess.
pub(crate) fn random(length: usize) -> Result<Secret<Vec<u8>>, SealError> {
    let mut bytes = vec![0; length];
    rand::fill(&mut bytes).map_err(|_unspecified| SealError::NoRandomness)?;
    Ok(Secret::new(bytes))
}

fn derived(root: &Secret<Vec<u8>>, label: &str) -> Result<hmac::Key, KeysError> {
    Ok(hmac::Key::new(hmac::HMAC_SHA256, derived_bytes(root, label)?.reveal()))
}

fn derived_bytes(root: &Secret<Vec<u8>>, label: &str) -> Result<Secret<Vec<u8>>, KeysError> {
    let salt = Salt::new(HKDF_SHA256, b"postern root secret v1");
    let mut bytes = vec![0; 32];
    salt.extract(root.reveal())
        .expand(&[label.as_bytes()], HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut bytes))
        .map_err(|_unspecified| SealError::Damaged)?;
    Ok(Secret::new(bytes))
}

/// The key in this file, in base64; made if there is none. Two processes that make it at once end
/// with the same one: the file appears whole, and the first wins.
fn kept(path: &Path, length: usize) -> Result<Secret<Vec<u8>>, KeysError> {
    let failed = |source| KeysError::File { path: path.to_owned(), source };
    if !path.exists() {
        let draft = path.with_extension(format!("draft-{}", std::process::id()));
        let text = BASE64.encode(random(length)?.reveal());
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)
            .map_err(failed)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        let linked = std::fs::hard_link(&draft, path);
        std::fs::remove_file(&draft).map_err(failed)?;
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
    }
    let mut text = String::new();
    File::open(path).and_then(|file| file.take(FILE_BYTES).read_to_string(&mut text)).map_err(failed)?;
    let bytes = BASE64.decode(text.trim()).ok().filter(|bytes| bytes.len() == length);
    bytes.map(Secret::new).ok_or_else(|| KeysError::Malformed { path: path.to_owned() })
}

#[cfg(test)]
mod tests;
