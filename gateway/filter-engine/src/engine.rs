// SPDX-License-Identifier: Apache-2.0
//! The engine: one for a gateway. It loads artefacts that it has verified, and nothing else.

use crate::artefact::{Expected, RefusedArtefact, Verified, VerifyingKey, verify};
use crate::aside::Aside;
use crate::bindings::FilterPre;
use crate::contract::{self, Import};
use crate::digest::Fingerprint;
use crate::filter::LoadedFilter;
use crate::gauge::Gauges;
use crate::linkers::Linkers;
use crate::manifest::{HostFunction, Manifest, ManifestMistakes};
use crate::settings;
use crate::ticker::Ticker;
use std::sync::Arc;
use wasmtime::component::Component;
use wasmtime::component::types::ComponentItem;

/// What an operator may choose.
#[derive(Debug, Clone, Copy)]
pub struct EngineSettings {
    /// The key that artefacts must be signed with.
    pub key: VerifyingKey,
    /// Calls in flight of all tenants together. Each reserves 4 GiB of address space.
    pub instances: u32,
    /// Calls in flight of one tenant.
    pub instances_per_tenant: u32,
}

/// 2,000 times 30 µs fills both cores of a small machine; address space: 2 TiB of 128.
const DEFAULT_INSTANCES: u32 = 512;
/// A well-behaved tenant has hardly more calls in flight than there are cores.
const DEFAULT_INSTANCES_PER_TENANT: u32 = 32;

impl EngineSettings {
    /// The defaults, with this key.
    #[must_use]
    pub const fn new(key: VerifyingKey) -> Self {
        Self { key, instances: DEFAULT_INSTANCES, instances_per_tenant: DEFAULT_INSTANCES_PER_TENANT }
    }
}

/// The engine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// wasmtime refused its settings; most often the address space is limited (`ulimit -v`).
    #[error("the filter engine could not reserve its memory; lift the limit on address space (`ulimit -v`)")]
    Settings(#[source] wasmtime::Error),
    /// A thread did not start.
    #[error(
        "the filter engine could not start its threads; lift the limit on them (`ulimit -u`, `pids.max`)"
    )]
    Thread(#[source] std::io::Error),
}

/// An artefact was not loaded; what was loaded before stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum LoadFilterError {
    /// The artefact is not what it should be.
    #[error("filter `{name}` is refused: {reason}")]
    Refused {
        /// The filter.
        name: String,
        /// What is wrong with it.
        reason: RefusedArtefact,
    },
    /// The manifest makes no sense.
    #[error("filter `{name}` has a manifest with mistakes")]
    Manifest {
        /// The filter.
        name: String,
        /// All of them.
        #[source]
        mistakes: ManifestMistakes,
    },
    /// The component needs a host function that its manifest does not ask for.
    #[error("filter `{name}` uses `{function}`: add it to `host` in filter.toml")]
    NotAskedFor {
        /// The filter.
        name: String,
        /// What it uses.
        function: &'static str,
    },
    /// The component needs something that no filter gets.
    #[error(
        "filter `{name}` imports `{import}`, which filters do not get; build it for wasm32-unknown-unknown with sdk-wasm"
    )]
    ForbiddenImport {
        /// The filter.
        name: String,
        /// What it imports.
        import: String,
    },
    /// It was built against a contract that this host does not keep.
    #[error(
        "filter `{name}` imports `{import}`, and filters are run by postern:filter@{major}.{minor} here; upgrade this gateway, or build the filter with the SDK of this release",
        major = contract::MAJOR,
        minor = contract::MINOR
    )]
    OtherContract {
        /// The filter.
        name: String,
        /// What it imports.
        import: String,
    },
    /// wasmtime refuses the code.
    #[error("filter `{name}` could not be loaded; build it against postern:filter@1.0.0")]
    Code {
        /// The filter.
        name: String,
        /// Why.
        #[source]
        source: wasmtime::Error,
    },
}

/// Loads and runs filters. Cheap to clone; all clones are one engine.
#[derive(Debug, Clone)]
pub struct Engine(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    engine: wasmtime::Engine,
    key: VerifyingKey,
    fingerprint: Fingerprint,
    gauges: Gauges,
    linkers: Linkers,
    aside: Aside,
    _ticker: Ticker,
}

impl Engine {
    /// Reserves address space for every instance, and starts its threads.
    ///
    /// # Errors
    /// [`EngineError`] if the machine does not give what it needs.
    pub fn new(settings: EngineSettings) -> Result<Self, EngineError> {
        let config = settings::running(settings.instances).map_err(EngineError::Settings)?;
        let engine = wasmtime::Engine::new(&config).map_err(EngineError::Settings)?;
        let ticker = Ticker::start(engine.weak()).map_err(EngineError::Thread)?;
        let aside = Aside::start().map_err(EngineError::Thread)?;
        Ok(Self(Arc::new(Inner {
            engine,
            key: settings.key,
            fingerprint: settings::fingerprint(),
            gauges: Gauges::new(settings.instances_per_tenant),
            linkers: Linkers::default(),
            aside,
            _ticker: ticker,
        })))
    }

    /// What artefacts for this engine must have been compiled for.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.0.fingerprint
    }

    /// Calls that are under way, of all tenants.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.0.gauges.in_flight()
    }

    /// Verifies an artefact and makes it ready to run. CPU work of a fraction of a millisecond.
    ///
    /// # Errors
    /// [`LoadFilterError`] says what is wrong with the artefact, its manifest or its imports.
    pub fn load(&self, bytes: &[u8], expected: &Expected<'_>) -> Result<LoadedFilter, LoadFilterError> {
        let name = expected.name.to_string();
        let verified = match verify(bytes, &self.0.key, expected, self.0.fingerprint) {
            Ok(verified) => verified,
            Err(reason) => return Err(LoadFilterError::Refused { name, reason }),
        };
        let manifest = match Manifest::parse(expected.manifest) {
            Ok(manifest) => manifest,
            Err(mistakes) => return Err(LoadFilterError::Manifest { name, mistakes }),
        };
        let code = |source| LoadFilterError::Code { name: name.clone(), source };
        let component = self.component(&verified).map_err(code)?;
        self.check_imports(&component, &manifest, &name)?;
        let linker = self.0.linkers.with(&self.0.engine, &manifest.host).map_err(code)?;
        let ready = linker.instantiate_pre(&component).and_then(FilterPre::new).map_err(code)?;
        let gauge = self.0.gauges.of(expected.tenant);
        Ok(LoadedFilter::new(self.clone(), ready, manifest, verified.statement().clone(), gauge))
    }

    pub(crate) fn aside(&self) -> &Aside {
        &self.0.aside
    }

    pub(crate) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.0.engine
    }

    #[expect(
        unsafe_code,
        reason = "compiled code is trusted as our own: `Verified` proves that the orchestrator signed these very bytes"
    )]
    fn component(&self, verified: &Verified<'_>) -> wasmtime::Result<Component> {
        // SAFETY: the bytes are what `precompile_component` of this same wasmtime made, since the
        // signature over their digest is our orchestrator's, and nothing has changed them since.
        unsafe { Component::deserialize(&self.0.engine, verified.code()) }
    }

    /// Names what a filter may not import, before linking would say so in wasmtime's words.
    fn check_imports(
        &self,
        component: &Component,
        manifest: &Manifest,
        name: &str,
    ) -> Result<(), LoadFilterError> {
        for (import, item) in component.component_type().imports(&self.0.engine) {
            // The world's own types are names: there is nothing to call.
            if matches!(item.ty, ComponentItem::Type(_)) {
                continue;
            }
            let ours = Import::parse(import);
            if ours.is_some_and(|ours| !ours.is_served()) {
                let import = import.chars().take(200).collect();
                return Err(LoadFilterError::OtherContract { name: name.to_owned(), import });
            }
            let interface = ours.map(|ours| ours.interface);
            let function = HostFunction::ALL.into_iter().find(|it| Some(it.as_str()) == interface);
            match (interface, function) {
                (_, Some(function)) if !manifest.host.contains(&function) => {
                    return Err(LoadFilterError::NotAskedFor {
                        name: name.to_owned(),
                        function: function.as_str(),
                    });
                }
                (_, Some(_)) | (Some("types" | "request" | "response" | "config"), None) => {}
                _ => {
                    return Err(LoadFilterError::ForbiddenImport {
                        name: name.to_owned(),
                        import: import.chars().take(200).collect(),
                    });
                }
            }
        }
        Ok(())
    }
}
