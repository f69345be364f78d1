// SPDX-License-Identifier: Apache-2.0
//! Compiled filters: made in a bounded child, kept by digest, signed when they are handed out.
//!
//! Nothing is compiled in this process. Code is signed for a tenant, filter and version only if it
//! came from the compiler: straight from the child, or from a file that carries the seal it got
//! then. The folder is a cache and is not believed: what was changed in it is compiled again.
//!
//! ```text
//! component ──▶ compiler child ──code──▶ sign ──▶ gateways
//!                         └─▶ seal ─▶ folder ─▶ seal is right? ─▶ sign; else compile again
//! ```

use crate::keys::{InstallationKeys, KeysError};
use aws_lc_rs::hmac;
use postern_common::control::FilterArtefact;
use postern_common::folder::{FilterFiles, TenantFiles};
use postern_common::id::{FilterName, TenantId};
use postern_common::problem::FieldError;
use postern_filter_engine::Digest;
use postern_filter_engine::artefact::{Compiled, SigningKey};
use postern_filter_engine::child::{Bounds, CompileInChildError, compile_in_child};
use postern_filter_engine::manifest::Manifest;
use postern_filter_engine::settings::fingerprint;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;

/// Compilers at the same time: each may take 2 GiB and a core.
const COMPILERS: usize = 2;
/// HMAC-SHA-256.
const SEAL_BYTES: usize = 32;

/// Compiles, keeps and signs filters. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Artefacts {
    compiler: Option<PathBuf>,
    folder: PathBuf,
    key: Arc<SigningKey>,
    seal: hmac::Key,
    free: Arc<Semaphore>,
    signed: Arc<Mutex<Signed>>,
}

/// What was signed last of each filter: most changes of a configuration change no filter.
type Signed = BTreeMap<(TenantId, FilterName), (Digest, FilterArtefact)>;

impl Artefacts {
    /// Compiles with the program `compiler` and keeps what it makes in `folder`.
    ///
    /// # Errors
    /// [`KeysError`] if there is no key to sign with.
    pub(crate) fn new(
        compiler: Option<PathBuf>,
        folder: PathBuf,
        keys: &InstallationKeys,
    ) -> Result<Self, KeysError> {
        let seed = keys.artefact_seed()?;
        let malformed = || KeysError::Malformed { path: folder.clone() };
        let seed = seed.reveal().first_chunk::<32>().ok_or_else(malformed)?;
        let key = SigningKey::from_seed(seed).map_err(|_invalid| malformed())?;
        Ok(Self {
            compiler,
            folder,
            key: Arc::new(key),
            seal: keys.compiled_key(),
            free: Arc::new(Semaphore::new(COMPILERS)),
            signed: Arc::default(),
        })
    }

    /// Whether every filter of a configuration can be used: its manifest is right and its
    /// component compiles. What was compiled is kept, so asking again costs nothing.
    ///
    /// # Errors
    /// Every mistake, with its place in the configuration.
    pub(crate) async fn check(&self, files: &TenantFiles) -> Result<(), Vec<FieldError>> {
        let mut mistakes = Vec::new();
        for (name, filter) in &files.filters {
            if let Err(wrong) = Manifest::parse(&filter.manifest) {
                mistakes.extend(wrong.0.iter().map(|mistake| FieldError {
                    pointer: format!("/filters/{name}/manifest"),
                    message: mistake.to_string(),
                }));
            }
            if let Err(message) = self.compiled(filter).await {
                mistakes.push(FieldError { pointer: format!("/filters/{name}/component"), message });
            }
        }
        if mistakes.is_empty() { Ok(()) } else { Err(mistakes) }
    }

    /// The filters of a configuration, compiled and signed as these versions.
    ///
    /// # Errors
    /// As [`Artefacts::check`].
    pub(crate) async fn signed(
        &self,
        tenant: &TenantId,
        files: &TenantFiles,
        versions: &BTreeMap<FilterName, u64>,
    ) -> Result<BTreeMap<FilterName, FilterArtefact>, Vec<FieldError>> {
        let mut signed = BTreeMap::new();
        for (name, filter) in &files.filters {
            let wrong = |message| vec![FieldError { pointer: format!("/filters/{name}/component"), message }];
            let version = versions.get(name).copied().unwrap_or(1);
            let artefact = self.artefact(tenant, name, filter, version).await.map_err(wrong)?;
            signed.insert(name.clone(), artefact);
        }
        let mut kept = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(of, name), _| of != tenant || files.filters.contains_key(name));
        Ok(signed)
    }

    async fn artefact(
        &self,
        tenant: &TenantId,
        name: &FilterName,
        filter: &FilterFiles,
        version: u64,
    ) -> Result<FilterArtefact, String> {
        let component = Digest::of(&filter.component);
        let place = (tenant.clone(), name.clone());
        let kept = self.signed.lock().unwrap_or_else(PoisonError::into_inner).get(&place).cloned();
        if let Some((of, artefact)) = kept
            && of == component
            && artefact.version == version
            && *artefact.manifest == *filter.manifest
        {
            return Ok(artefact);
        }
        let bytes = self.compiled(filter).await?;
        let compiled = Compiled::parse(&bytes, &filter.component).map_err(|error| error.to_string())?;
        let bytes = self.key.sign(&compiled, (tenant, name), version, &filter.manifest);
        let manifest = Arc::from(filter.manifest.as_str());
        let artefact = FilterArtefact { manifest, artefact: Arc::from(bytes), version };
        let mut kept = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        kept.insert(place, (component, artefact.clone()));
        Ok(artefact)
    }

    /// What the compiler makes of a component, made now or before.
    async fn compiled(&self, filter: &FilterFiles) -> Result<Vec<u8>, String> {
        let component = &filter.component;
        let kept = self.folder.join(format!("{}-{}", Digest::of(component), fingerprint()));
        if let Some(bytes) = self.believed(&kept, component).await {
            return Ok(bytes);
        }
        let Some(compiler) = &self.compiler else {
            return Err(
                "filters cannot be compiled here: `postern-compile` is missing; `make build` makes it"
                    .to_owned(),
            );
        };
        // The semaphore is never closed.
        let _room = self.free.acquire().await.map_err(|closed| closed.to_string())?;
        let bytes =
            compile_in_child(compiler, component, &Bounds::default()).await.map_err(|error| told(&error))?;
        let (folder, sealed) = (self.folder.clone(), sealed(&self.seal, &bytes));
        let wrote = tokio::task::spawn_blocking(move || keep(&folder, &kept, &sealed)).await;
        if let Ok(Err(error)) = wrote {
            tracing::warn!(error = &error as &dyn std::error::Error, "a compiled filter was not kept");
        }
        Ok(bytes)
    }

    /// What is kept in a file, if the compiler made it of this component for this engine.
    async fn believed(&self, kept: &Path, component: &[u8]) -> Option<Vec<u8>> {
        let bytes = tokio::fs::read(kept).await.ok()?;
        let opened = opened(&self.seal, bytes).filter(|bytes| {
            Compiled::parse(bytes, component).is_ok_and(|compiled| compiled.fingerprint == fingerprint())
        });
        if opened.is_none() {
            let file = kept.display();
            tracing::warn!(%file, "a compiled filter is not as it was written: it is compiled again");
        }
        opened
    }
}

/// What is kept of compiled code: the code, and a keyed hash of it.
fn sealed(key: &hmac::Key, compiled: &[u8]) -> Vec<u8> {
    [compiled, hmac::sign(key, compiled).as_ref()].concat()
}

/// The code of what was kept, if nobody has changed it.
fn opened(key: &hmac::Key, mut kept: Vec<u8>) -> Option<Vec<u8>> {
    let length = kept.len().checked_sub(SEAL_BYTES)?;
    let (compiled, seal) = kept.split_at_checked(length)?;
    hmac::verify(key, compiled, seal).ok()?;
    kept.truncate(length);
    Some(kept)
}

/// What the author of a filter is told; what is our own fault goes to the log as well.
fn told(error: &CompileInChildError) -> String {
    let is_ours = matches!(
        error,
        CompileInChildError::Start { .. } | CompileInChildError::Answer(_) | CompileInChildError::Pipe(_)
    );
    if is_ours {
        let cause: &dyn std::error::Error = error;
        tracing::error!(error = cause, cause = cause.source(), "the compiler failed");
        return "the compiler could not be run; the orchestrator's log says why".to_owned();
    }
    error.to_string()
}

/// Writes a file whole or not at all.
fn keep(folder: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let draft = path.with_extension(format!("draft-{}", postern_common::id::RequestId::generate()));
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(draft, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_comes_back_and_nothing_that_was_changed_does() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[1; 32]);
        let kept = sealed(&key, b"code");
        assert_eq!(opened(&key, kept.clone()).as_deref(), Some(&b"code"[..]));
        for place in 0..kept.len() {
            let mut changed = kept.clone();
            changed[place] ^= 1;
            assert_eq!(opened(&key, changed), None, "byte {place}");
            assert_eq!(opened(&key, kept[..place].to_vec()), None, "cut to {place}");
        }
        let other = hmac::Key::new(hmac::HMAC_SHA256, &[2; 32]);
        assert_eq!(opened(&other, kept), None, "another installation's");
    }
}
