// SPDX-License-Identifier: Apache-2.0
//! What an orchestrator is told when it starts.

use crate::keys::GivenKeys;
use crate::runtime::Isolation;
use crate::store::AtStart;
use postern_common::secret::Secret;
use postern_common::settings::{KeptTimes, SandboxCaps, Storage};
use postern_filter_engine::child::Bounds;
use std::path::PathBuf;
use std::time::Duration;
use url::Url;

/// An orchestrator's settings, each already judged.
#[derive(Debug)]
pub struct Config {
    /// Where everything of this installation lies: keys, database, users' files.
    pub data_dir: PathBuf,
    /// The database; `None`: SQLite in the data folder.
    pub database_url: Option<Secret<String>>,
    /// What is done about tables that are not up to date; `None`: SQLite's are brought up to date,
    /// and with Postgres' nothing is started.
    pub migrate: Option<AtStart>,
    /// Whether every orchestrator of the database drives the same sandboxes, for they run on a
    /// cluster; else each has those of its own machine.
    pub on_cluster: bool,
    /// Keys that the operator gave.
    pub keys: GivenKeys,
    /// The life of a session token, at most an hour.
    pub token_ttl: Duration,
    /// Makes the backend `default` of tenant `default`.
    pub backend_url: Option<Url>,
    /// The isolation that every sandbox must have exactly; `None`: the best that works.
    pub isolation: Option<Isolation>,
    /// How long what is over is remembered.
    pub kept: KeptTimes,
    /// What a template may ask for at most.
    pub caps: SandboxCaps,
    /// Where users' files are kept.
    pub storage: Storage,
    /// The program `postern-compile`; without it filters are refused.
    pub compiler: Option<PathBuf>,
    /// `postern-compile` of other releases, for gateways that still run, or already run, those.
    pub other_compilers: Vec<PathBuf>,
    /// What compiling one filter may use.
    pub compiling: Bounds,
}

impl Config {
    /// Settings with nothing but a data folder: everything else as if nobody had said.
    #[must_use]
    pub fn new(data_dir: PathBuf) -> Self {
        Self {
            data_dir,
            database_url: None,
            migrate: None,
            on_cluster: false,
            keys: GivenKeys::default(),
            token_ttl: postern_common::token::MAX_TTL,
            backend_url: None,
            isolation: None,
            kept: KeptTimes::default(),
            caps: SandboxCaps::default(),
            storage: Storage::default(),
            compiler: None,
            other_compilers: Vec::new(),
            compiling: Bounds::default(),
        }
    }
    /// The database's URL.
    #[must_use]
    pub fn database(&self) -> Secret<String> {
        let own = || Secret::new(format!("sqlite://{}", self.data_dir.join("postern.db").display()));
        self.database_url.clone().unwrap_or_else(own)
    }
}
