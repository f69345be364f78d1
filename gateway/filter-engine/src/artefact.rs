// SPDX-License-Identifier: Apache-2.0
//! Compiled filters on their way: what the compiler hands back, and what the orchestrator signs.
//!
//! ```text
//! Compiled:  "PSTNCMP1" fingerprint[32] digest of the component[32] code…
//! artefact:  "PSTNFLT1" length of the statement (u32, big-endian) statement (JSON) signature[64] code…
//! ```
//! The signature (Ed25519) is over a prefix of its own and the statement's bytes as they stand;
//! the statement names the digests of component, code and manifest. Code is native: it is loaded
//! only through [`verify`], whose result is the proof.

use crate::digest::{Digest, Fingerprint};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use postern_common::id::{FilterName, TenantId};
use serde::{Deserialize, Serialize};

const COMPILED_MAGIC: &[u8; 8] = b"PSTNCMP1";
const ARTEFACT_MAGIC: &[u8; 8] = b"PSTNFLT1";
/// Keeps a signature over a statement from meaning anything elsewhere.
const SIGNED_PREFIX: &[u8] = b"postern filter artefact 1\0";
const SIGNATURE_BYTES: usize = 64;
/// A statement has about 600 bytes.
const MAX_STATEMENT_BYTES: usize = 4096;

/// What the orchestrator vouches for with its signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// Whose filter it is.
    pub tenant: TenantId,
    /// The filter's name.
    pub name: FilterName,
    /// Rises with each push and each rollback.
    pub version: u64,
    /// The engine that the code is for.
    pub fingerprint: Fingerprint,
    /// The digest of the component as it was uploaded.
    pub component: Digest,
    /// The digest of the code that was compiled from it.
    pub code: Digest,
    /// The digest of the manifest's text: what the filter may do is signed too.
    pub manifest: Digest,
}

/// What the compiler made of a component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled<'a> {
    /// The engine that the code is for.
    pub fingerprint: Fingerprint,
    /// The digest of the component.
    pub component: Digest,
    /// The code.
    pub code: &'a [u8],
}

/// Bytes that the compiler did not make, or not from this component.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompiledError {
    /// They have another shape.
    #[error("the compiler's answer has not the expected form; are both programs of one release?")]
    Malformed,
    /// They are of another component.
    #[error("the compiler answered for another component")]
    OtherComponent,
}

impl<'a> Compiled<'a> {
    /// Reads what a compiler wrote for `component`.
    ///
    /// # Errors
    /// [`CompiledError`] if the form is another, or the component.
    pub fn parse(bytes: &'a [u8], component: &[u8]) -> Result<Self, CompiledError> {
        let mut rest = bytes;
        let magic = take::<8>(&mut rest).ok_or(CompiledError::Malformed)?;
        let fingerprint = take::<32>(&mut rest).ok_or(CompiledError::Malformed)?;
        let digest = take::<32>(&mut rest).ok_or(CompiledError::Malformed)?;
        if &magic != COMPILED_MAGIC || rest.is_empty() {
            return Err(CompiledError::Malformed);
        }
        let compiled = Self {
            fingerprint: Fingerprint::from_bytes(fingerprint),
            component: Digest::from_bytes(digest),
            code: rest,
        };
        if compiled.component != Digest::of(component) {
            return Err(CompiledError::OtherComponent);
        }
        Ok(compiled)
    }

    /// The form in which the compiler hands it over.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.code.len().saturating_add(72));
        bytes.extend_from_slice(COMPILED_MAGIC);
        bytes.extend_from_slice(self.fingerprint.as_bytes());
        bytes.extend_from_slice(self.component.as_bytes());
        bytes.extend_from_slice(self.code);
        bytes
    }
}

/// The orchestrator's key for artefacts.
pub struct SigningKey(Ed25519KeyPair);

/// The public half, which gateways hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyingKey([u8; 32]);

/// A seed that no key can be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no Ed25519 key could be made of the seed")]
pub struct InvalidSeed;

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("SigningKey(…)")
    }
}

impl SigningKey {
    /// The key of a seed, which must be 32 bytes of a secure generator.
    ///
    /// # Errors
    /// [`InvalidSeed`] if the provider refuses it.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, InvalidSeed> {
        Ed25519KeyPair::from_seed_unchecked(seed).map(Self).map_err(|_rejected| InvalidSeed)
    }

    /// The public half.
    #[must_use]
    pub fn verifying_key(&self) -> VerifyingKey {
        let mut key = [0; 32];
        let public = self.0.public_key().as_ref();
        key.iter_mut().zip(public).for_each(|(to, from)| *to = *from);
        VerifyingKey(key)
    }

    /// Signs compiled code as version `version` of a tenant's filter.
    #[must_use]
    pub fn sign(
        &self,
        compiled: &Compiled<'_>,
        (tenant, name): (&TenantId, &FilterName),
        version: u64,
        manifest: &str,
    ) -> Vec<u8> {
        let statement = Statement {
            tenant: tenant.clone(),
            name: name.clone(),
            version,
            fingerprint: compiled.fingerprint,
            component: compiled.component,
            code: Digest::of(compiled.code),
            manifest: Digest::of(manifest.as_bytes()),
        };
        // A struct of strings and numbers always has a JSON form.
        let statement = serde_json::to_vec(&statement).unwrap_or_default();
        let signature = self.0.sign(&signed(&statement));
        let length = u32::try_from(statement.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(compiled.code.len().saturating_add(1024));
        bytes.extend_from_slice(ARTEFACT_MAGIC);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&statement);
        bytes.extend_from_slice(signature.as_ref());
        bytes.extend_from_slice(compiled.code);
        bytes
    }
}

impl VerifyingKey {
    /// A public key as it was delivered.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// What an artefact must be to be loaded.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// Whose filter.
    pub tenant: &'a TenantId,
    /// Which filter.
    pub name: &'a FilterName,
    /// The version that was announced.
    pub version: u64,
    /// The manifest that came with it.
    pub manifest: &'a str,
}

/// An artefact that is what it should be: signed by us, for this tenant, filter, version,
/// manifest and engine. Only [`verify`] makes one.
#[derive(Debug)]
pub struct Verified<'a> {
    statement: Statement,
    code: &'a [u8],
}

impl Verified<'_> {
    /// What was signed.
    #[must_use]
    pub const fn statement(&self) -> &Statement {
        &self.statement
    }

    pub(crate) const fn code(&self) -> &[u8] {
        self.code
    }
}

/// Why an artefact is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedArtefact {
    /// It has another form.
    #[error("it has not the form of an artefact")]
    Malformed,
    /// Its signature is not by the orchestrator's key.
    #[error("its signature is not by this installation's orchestrator")]
    Signature,
    /// Its code is not what was signed.
    #[error("its code has been changed since it was signed")]
    Code,
    /// It is signed for another tenant.
    #[error("it is signed for tenant `{0}`")]
    OtherTenant(TenantId),
    /// It is signed as another filter.
    #[error("it is signed as filter `{0}`")]
    OtherName(FilterName),
    /// It is another version than was announced.
    #[error("it is version {signed}, and {announced} was announced")]
    OtherVersion {
        /// The version that was signed.
        signed: u64,
        /// The version that was announced.
        announced: u64,
    },
    /// Its manifest is not what was signed.
    #[error("its manifest has been changed since it was signed")]
    Manifest,
    /// It was compiled for another engine.
    #[error("it was compiled for an engine with fingerprint {0}; it must be compiled again for this one")]
    OtherEngine(Fingerprint),
}

/// Checks everything about an artefact. Costs a signature check and a SHA-256 over its bytes.
///
/// # Errors
/// [`RefusedArtefact`] says what is not as expected.
pub fn verify<'a>(
    bytes: &'a [u8],
    key: &VerifyingKey,
    expected: &Expected<'_>,
    fingerprint: Fingerprint,
) -> Result<Verified<'a>, RefusedArtefact> {
    let (statement, signature, code) = split(bytes).ok_or(RefusedArtefact::Malformed)?;
    UnparsedPublicKey::new(&ED25519, key.0)
        .verify(&signed(statement), signature)
        .map_err(|_unspecified| RefusedArtefact::Signature)?;
    let statement: Statement =
        serde_json::from_slice(statement).map_err(|_mismatch| RefusedArtefact::Malformed)?;
    if &statement.tenant != expected.tenant {
        return Err(RefusedArtefact::OtherTenant(statement.tenant));
    }
    if &statement.name != expected.name {
        return Err(RefusedArtefact::OtherName(statement.name));
    }
    if statement.version != expected.version {
        return Err(RefusedArtefact::OtherVersion { signed: statement.version, announced: expected.version });
    }
    if statement.manifest != Digest::of(expected.manifest.as_bytes()) {
        return Err(RefusedArtefact::Manifest);
    }
    if statement.fingerprint != fingerprint {
        return Err(RefusedArtefact::OtherEngine(statement.fingerprint));
    }
    if statement.code != Digest::of(code) {
        return Err(RefusedArtefact::Code);
    }
    Ok(Verified { statement, code })
}

/// The engine that an artefact says it is for. Nothing is verified: for telling people, and never
/// for deciding whether to load it.
#[must_use]
pub fn engine_of(artefact: &[u8]) -> Option<Fingerprint> {
    let (statement, _, _) = split(artefact)?;
    serde_json::from_slice::<Statement>(statement).ok().map(|statement| statement.fingerprint)
}

fn split(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let mut rest = bytes;
    if &take::<8>(&mut rest)? != ARTEFACT_MAGIC {
        return None;
    }
    let length = usize::try_from(u32::from_be_bytes(take(&mut rest)?)).ok()?;
    if length > MAX_STATEMENT_BYTES {
        return None;
    }
    let (statement, rest) = rest.split_at_checked(length)?;
    let (signature, code) = rest.split_at_checked(SIGNATURE_BYTES)?;
    (!code.is_empty()).then_some((statement, signature, code))
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*first)
}

fn signed(statement: &[u8]) -> Vec<u8> {
    [SIGNED_PREFIX, statement].concat()
}

#[cfg(test)]
mod tests;
