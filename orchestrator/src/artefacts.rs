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
//!
//! Code fits one engine. Gateways of another release get theirs from that release's compiler, which
//! an operator puts beside this one; its answers are judged like our own's.

mod cache;

pub(crate) use cache::Used;

use crate::keys::{InstallationKeys, KeysError};
use aws_lc_rs::hmac;
use postern_common::control::FilterArtefact;
use postern_common::folder::{FilterFiles, TenantFiles};
use postern_common::id::{FilterName, TenantId};
use postern_common::problem::FieldError;
use postern_filter_engine::artefact::{Compiled, SigningKey};
use postern_filter_engine::child::{Bounds, CompileInChildError, compile_in_child, engine_of_compiler};
use postern_filter_engine::manifest::Manifest;
use postern_filter_engine::settings::fingerprint;
use postern_filter_engine::{Digest, Fingerprint};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
use tokio::sync::Semaphore;

/// Compilers at the same time: each may take 2 GiB and a core.
const COMPILERS: usize = 2;
/// HMAC-SHA-256.
const SEAL_BYTES: usize = 32;

/// A compiler of another release cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{}` does not say which engine it compiles for; name a `postern-compile` of another release in \
     `POSTERN_FILTER_COMPILERS`, or none",
    program.display()
)]
pub struct UnusableCompiler {
    program: PathBuf,
    source: CompileInChildError,
}

/// Why there is no compiled code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotCompiled {
    /// What the author, or the operator, is told.
    pub(crate) message: String,
    /// It is not the component's fault: later it may go well.
    pub(crate) is_ours: bool,
}

/// Why filters were not signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotSigned {
    /// What is wrong with them.
    Mistakes(Vec<FieldError>),
    /// What is wrong here.
    Ours(String),
}

/// Compiles, keeps and signs filters. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Artefacts {
    compiler: Option<PathBuf>,
    /// Compilers of other releases, by the engine that they compile for.
    others: BTreeMap<Fingerprint, PathBuf>,
    /// What compiling one filter may use.
    bounds: Bounds,
    folder: PathBuf,
    key: Arc<SigningKey>,
    seal: hmac::Key,
    free: Arc<Semaphore>,
    signed: Arc<Mutex<Signed>>,
}

/// What was signed last of each filter: most changes of a configuration change no filter.
type Signed = BTreeMap<(TenantId, FilterName, Fingerprint), (Digest, FilterArtefact)>;

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
            others: BTreeMap::new(),
            bounds: Bounds::default(),
            folder,
            key: Arc::new(key),
            seal: keys.compiled_key(),
            free: Arc::new(Semaphore::new(COMPILERS)),
            signed: Arc::default(),
        })
    }

    /// Takes compilers of other releases, each of which says which engine it compiles for.
    ///
    /// # Errors
    /// [`UnusableCompiler`] names the first that does not.
    pub(crate) async fn with_others(mut self, programs: &[PathBuf]) -> Result<Self, UnusableCompiler> {
        for program in programs {
            let unusable = |source| UnusableCompiler { program: program.clone(), source };
            let engine = engine_of_compiler(program).await.map_err(unusable)?;
            if engine != fingerprint() {
                tracing::info!(program = %program.display(), %engine, "compiles for gateways of another release");
                self.others.insert(engine, program.clone());
            }
        }
        Ok(self)
    }

    /// Compiles within these bounds.
    pub(crate) fn within(mut self, bounds: Bounds) -> Self {
        self.bounds = bounds;
        self
    }

    /// The engines, other than this release's, that can be compiled for.
    pub(crate) fn other_engines(&self) -> impl Iterator<Item = Fingerprint> {
        self.others.keys().copied()
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
            if let Err(NotCompiled { message, .. }) = self.compiled(filter, fingerprint()).await {
                mistakes.push(FieldError { pointer: format!("/filters/{name}/component"), message });
            }
        }
        if mistakes.is_empty() { Ok(()) } else { Err(mistakes) }
    }

    /// The filters of a configuration, compiled for an engine and signed as these versions.
    ///
    /// # Errors
    /// [`NotSigned`].
    pub(crate) async fn signed(
        &self,
        tenant: &TenantId,
        files: &TenantFiles,
        versions: &BTreeMap<FilterName, u64>,
        engine: Fingerprint,
    ) -> Result<BTreeMap<FilterName, FilterArtefact>, NotSigned> {
        let mut signed = BTreeMap::new();
        for (name, filter) in &files.filters {
            let wrong = |NotCompiled { message, is_ours }| {
                if is_ours {
                    return NotSigned::Ours(format!("filter `{name}` was not compiled: {message}"));
                }
                NotSigned::Mistakes(vec![FieldError {
                    pointer: format!("/filters/{name}/component"),
                    message,
                }])
            };
            let version = versions.get(name).copied().unwrap_or(1);
            let place = (tenant.clone(), name.clone(), engine);
            signed.insert(name.clone(), self.artefact(place, filter, version).await.map_err(wrong)?);
        }
        let mut kept = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(of, name, _), _| of != tenant || files.filters.contains_key(name));
        Ok(signed)
    }

    async fn artefact(
        &self,
        place: (TenantId, FilterName, Fingerprint),
        filter: &FilterFiles,
        version: u64,
    ) -> Result<FilterArtefact, NotCompiled> {
        let component = Digest::of(&filter.component);
        let kept = self.signed.lock().unwrap_or_else(PoisonError::into_inner).get(&place).cloned();
        if let Some((of, artefact)) = kept
            && of == component
            && artefact.version == version
            && *artefact.manifest == *filter.manifest
        {
            return Ok(artefact);
        }
        let (tenant, name, engine) = &place;
        let bytes = self.compiled(filter, *engine).await?;
        let ours = |error: postern_filter_engine::artefact::CompiledError| NotCompiled {
            message: error.to_string(),
            is_ours: true,
        };
        let compiled = Compiled::parse(&bytes, &filter.component).map_err(ours)?;
        let bytes = self.key.sign(&compiled, (tenant, name), version, &filter.manifest);
        let manifest = Arc::from(filter.manifest.as_str());
        let artefact = FilterArtefact { manifest, artefact: Arc::from(bytes), version };
        let mut kept = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        kept.insert(place, (component, artefact.clone()));
        Ok(artefact)
    }

    fn compiler_of(&self, engine: Fingerprint) -> Result<&Path, NotCompiled> {
        let own = self.compiler.as_ref().filter(|_| engine == fingerprint());
        own.or_else(|| self.others.get(&engine)).map(PathBuf::as_path).ok_or_else(|| NotCompiled {
            message: "filters cannot be compiled here: `postern-compile` is missing; `make build` makes it"
                .to_owned(),
            is_ours: true,
        })
    }

    /// What the compiler of an engine makes of a component, made now or before.
    async fn compiled(&self, filter: &FilterFiles, engine: Fingerprint) -> Result<Vec<u8>, NotCompiled> {
        let component = &filter.component;
        let kept = self.folder.join(cache::file_name(Digest::of(component), engine));
        if let Some(bytes) = self.believed(&kept, component, engine).await {
            return Ok(bytes);
        }
        let compiler = self.compiler_of(engine)?;
        let ours = |message| NotCompiled { message, is_ours: true };
        // The semaphore is never closed.
        let _room = self.free.acquire().await.map_err(|closed| ours(closed.to_string()))?;
        let bytes =
            compile_in_child(compiler, component, &self.bounds).await.map_err(|error| told(&error))?;
        let is_for_it = Compiled::parse(&bytes, component).is_ok_and(|it| it.fingerprint == engine);
        if !is_for_it {
            let program = compiler.display();
            return Err(ours(format!("`{program}` compiled for another engine than {engine}")));
        }
        let (folder, sealed) = (self.folder.clone(), sealed(&self.seal, &bytes));
        let wrote = tokio::task::spawn_blocking(move || cache::keep(&folder, &kept, &sealed)).await;
        if let Ok(Err(error)) = wrote {
            tracing::warn!(error = &error as &dyn std::error::Error, "a compiled filter was not kept");
        }
        Ok(bytes)
    }

    /// What is kept in a file, if the compiler made it of this component for this engine.
    async fn believed(&self, kept: &Path, component: &[u8], engine: Fingerprint) -> Option<Vec<u8>> {
        let bytes = tokio::fs::read(kept).await.ok()?;
        let opened = opened(&self.seal, bytes).filter(|bytes| {
            Compiled::parse(bytes, component).is_ok_and(|compiled| compiled.fingerprint == engine)
        });
        if opened.is_none() {
            let file = kept.display();
            tracing::warn!(%file, "a compiled filter is not as it was written: it is compiled again");
        }
        opened
    }

    /// Drops what is kept of components that no filter is made of any more, and of engines that
    /// nobody compiles for, within the bounds of [`cache`].
    ///
    /// # Errors
    /// [`io::Error`] if the folder cannot be read; what could be dropped by then was.
    pub(crate) async fn trim(&self, used: Used, now: SystemTime) -> io::Result<cache::Trimmed> {
        let mut engines: Vec<Fingerprint> = self.others.keys().copied().collect();
        engines.push(fingerprint());
        let folder = self.folder.clone();
        let trimmed = tokio::task::spawn_blocking(move || cache::trim(&folder, &used, &engines, now)).await;
        trimmed.unwrap_or_else(|panicked| Err(io::Error::other(panicked)))
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
fn told(error: &CompileInChildError) -> NotCompiled {
    let is_ours = matches!(
        error,
        CompileInChildError::Start { .. } | CompileInChildError::Answer(_) | CompileInChildError::Pipe(_)
    );
    if !is_ours {
        return NotCompiled { message: error.to_string(), is_ours };
    }
    let cause: &dyn std::error::Error = error;
    tracing::error!(error = cause, cause = cause.source(), "the compiler failed");
    let message = "the compiler could not be run; the orchestrator's log says why".to_owned();
    NotCompiled { message, is_ours }
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

    const COMPONENT: &[u8] = b"a component";

    /// A program that answers as a compiler of the release with this engine would.
    fn compiler(folder: &Path, says: Fingerprint, compiles_for: Fingerprint) -> PathBuf {
        let compiled =
            Compiled { fingerprint: compiles_for, component: Digest::of(COMPONENT), code: b"code" };
        let (answer, program) = (folder.join(format!("{says}.answer")), folder.join(format!("{says}.sh")));
        std::fs::write(&answer, compiled.to_bytes()).expect("writes");
        let answer = answer.display();
        let script = format!(
            "#!/bin/sh\ncase \"$1\" in fingerprint) echo {says} ;; compile) cat > /dev/null; cat {answer} ;; esac\n"
        );
        std::fs::write(&program, script).expect("writes");
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .expect("sets");
        program
    }

    async fn artefacts(folder: &Path, database: &crate::store::tests::Database) -> Artefacts {
        let keys = InstallationKeys::open(Default::default(), &folder.join("keys"), &database.store).await;
        Artefacts::new(None, folder.join("artefacts"), &keys.expect("keys")).expect("a key to sign with")
    }

    fn files() -> (TenantId, TenantFiles) {
        let filter = FilterFiles { manifest: String::new(), component: COMPONENT.to_vec() };
        let name = FilterName::parse("guard").expect("a name");
        let files = TenantFiles { filters: BTreeMap::from([(name, filter)]), ..TenantFiles::default() };
        (TenantId::parse("acme").expect("a name"), files)
    }

    #[tokio::test]
    async fn gateways_of_another_release_get_what_its_own_compiler_makes() {
        let (folder, database) =
            (tempfile::tempdir().expect("a folder"), crate::store::tests::Database::sqlite().await);
        let engine = Fingerprint::of(b"another release");
        let program = compiler(folder.path(), engine, engine);
        let artefacts =
            artefacts(folder.path(), &database).await.with_others(std::slice::from_ref(&program)).await;
        let artefacts = artefacts.expect("it says its engine");
        assert_eq!(artefacts.other_engines().collect::<Vec<_>>(), [engine]);
        let (tenant, files) = files();
        let versions = BTreeMap::from([(FilterName::parse("guard").expect("a name"), 7)]);
        let signed = artefacts.signed(&tenant, &files, &versions, engine).await.expect("is compiled");
        let artefact = signed.values().next().expect("one");
        assert_eq!(postern_filter_engine::artefact::engine_of(&artefact.artefact), Some(engine));
        assert_eq!(artefact.version, 7);
        // Compiled once: what is kept serves a second start without that program.
        std::fs::write(&program, "#!/bin/sh\nexit 1\n").expect("writes");
        artefacts.signed.lock().expect("no panic").clear();
        assert!(artefacts.signed(&tenant, &files, &versions, engine).await.is_ok());
        let own = artefacts.signed(&tenant, &files, &versions, fingerprint()).await;
        assert!(matches!(own, Err(NotSigned::Ours(_))), "there is no compiler of our own: {own:?}");
    }

    #[tokio::test]
    async fn a_compiler_that_lies_about_its_engine_makes_nothing_and_one_that_has_none_is_refused() {
        let (folder, database) =
            (tempfile::tempdir().expect("a folder"), crate::store::tests::Database::sqlite().await);
        let (says, makes) = (Fingerprint::of(b"what it says"), Fingerprint::of(b"what it makes"));
        let program = compiler(folder.path(), says, makes);
        let lying =
            artefacts(folder.path(), &database).await.with_others(&[program]).await.expect("says one");
        let (tenant, files) = files();
        let signed = lying.signed(&tenant, &files, &BTreeMap::new(), says).await;
        assert!(
            matches!(&signed, Err(NotSigned::Ours(words)) if words.contains("another engine")),
            "{signed:?}"
        );
        let none = artefacts(folder.path(), &database).await.with_others(&["/bin/true".into()]).await;
        let told = none.expect_err("it says nothing").to_string();
        assert!(told.contains("/bin/true") && told.contains("POSTERN_FILTER_COMPILERS"), "{told}");
    }
}
