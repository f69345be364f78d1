// SPDX-License-Identifier: Apache-2.0
//! A filter in the gateway's own engine, in this process: compiled in the bounded child, signed with
//! a key that nobody keeps, verified and loaded.

use super::folder::FilterFolder;
use crate::failure::Failure;
use anyhow::{Context as _, anyhow};
use postern_common::id::TenantId;
use postern_filter_engine::artefact::{Compiled, Expected, SigningKey};
use postern_filter_engine::child::{Bounds, compile_in_child};
use postern_filter_engine::{ConfiguredFilter, Engine, EngineSettings, LoadedFilter};
use serde_json::{Map, Value};
use std::time::{Duration, Instant};

/// Calls at the same time: cases run one after the other.
const INSTANCES: u32 = 4;

/// A loaded filter, and what it took.
#[derive(Debug)]
pub(super) struct Rig {
    engine: Engine,
    artefact: Vec<u8>,
    tenant: TenantId,
    folder: FilterFolder,
    manifest: String,
    pub(super) filter: LoadedFilter,
    pub(super) component_bytes: usize,
    pub(super) code_bytes: usize,
    pub(super) compiling: Duration,
    pub(super) loading: Duration,
}

impl Rig {
    /// Compiles and loads the filter of a folder.
    pub(super) async fn load(folder: &FilterFolder) -> Result<Self, Failure> {
        let (manifest, component) = (folder.manifest()?, folder.component()?);
        let begun = Instant::now();
        let compiled = compile_in_child(&folder.compiler()?, &component, &Bounds::default()).await;
        let compiled =
            compiled.map_err(|error| anyhow::Error::new(error).context("the filter is refused"))?;
        let compiling = begun.elapsed();
        let compiled = Compiled::parse(&compiled, &component).map_err(anyhow::Error::new)?;
        let mut seed = [0; 32];
        aws_lc_rs::rand::fill(&mut seed).map_err(|_unspecified| anyhow!("the system gives no randomness"))?;
        let key = SigningKey::from_seed(&seed).map_err(anyhow::Error::new)?;
        let settings = EngineSettings {
            instances: INSTANCES,
            instances_per_tenant: INSTANCES,
            ..EngineSettings::new(key.verifying_key())
        };
        let engine = Engine::new(settings).map_err(anyhow::Error::new)?;
        let tenant = TenantId::parse("local").context("a name of ours")?;
        let artefact = key.sign(&compiled, (&tenant, &folder.name), 1, &manifest);
        let begun = Instant::now();
        let filter = load(&engine, &artefact, &tenant, folder, &manifest)?;
        let loading = begun.elapsed();
        Ok(Self {
            component_bytes: component.len(),
            code_bytes: compiled.code.len(),
            folder: folder.clone(),
            engine,
            artefact,
            tenant,
            manifest,
            filter,
            compiling,
            loading,
        })
    }

    /// The filter as if it had never been called: its buckets are full, its counters at nothing.
    pub(super) fn fresh(&self, settings: &Map<String, Value>) -> Result<ConfiguredFilter, Failure> {
        let filter = load(&self.engine, &self.artefact, &self.tenant, &self.folder, &self.manifest)?;
        Ok(filter.configure(settings).map_err(anyhow::Error::new)?)
    }
}

fn load(
    engine: &Engine,
    artefact: &[u8],
    tenant: &TenantId,
    folder: &FilterFolder,
    manifest: &str,
) -> Result<LoadedFilter, Failure> {
    let expected = Expected { tenant, name: &folder.name, version: 1, manifest };
    Ok(engine.load(artefact, &expected).map_err(anyhow::Error::new)?)
}
