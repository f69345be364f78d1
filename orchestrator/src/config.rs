// SPDX-License-Identifier: Apache-2.0
//! What an orchestrator is told when it starts.

use crate::keys::GivenKeys;
use crate::runtime::Isolation;
use crate::store::AtStart;
use postern_common::secret::Secret;
use postern_common::settings::{
    KeptTimes, MigrateAtStart, SandboxCaps, Settings, Storage, WantedIsolation, name,
};
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

    /// What an operator's settings say, for whatever program reads them. Which compiler there is and
    /// whether this is a cluster is the program's to say.
    #[must_use]
    pub fn of(settings: &Settings, data_dir: PathBuf) -> Self {
        let token = settings.token();
        Self {
            data_dir,
            database_url: settings.secret(name::DATABASE_URL),
            migrate: settings.migrate().map(|wanted| match wanted {
                MigrateAtStart::Auto => AtStart::Auto,
                MigrateAtStart::Check => AtStart::Check,
            }),
            on_cluster: false,
            keys: GivenKeys {
                token: token.signing_key,
                old_tokens: token.old_keys,
                master: settings.master_key(),
            },
            token_ttl: token.ttl,
            backend_url: settings.backend_url(),
            isolation: Self::isolation_of(settings.isolation()),
            kept: settings.kept_times(),
            caps: settings.sandbox_caps(),
            storage: settings.storage(),
            compiler: None,
            other_compilers: settings.list(name::FILTER_COMPILERS).into_iter().map(PathBuf::from).collect(),
            compiling: Bounds::of(settings.compile_cpu(), settings.compile_memory()),
        }
    }

    /// The one isolation that every sandbox must have; `None`: the best that works.
    #[must_use]
    pub const fn isolation_of(wanted: WantedIsolation) -> Option<Isolation> {
        match wanted {
            WantedIsolation::Auto => None,
            WantedIsolation::Gvisor => Some(Isolation::Gvisor),
            WantedIsolation::Namespaces => Some(Isolation::Namespaces),
        }
    }

    /// The database's URL.
    #[must_use]
    pub fn database(&self) -> Secret<String> {
        let own = || Secret::new(format!("sqlite://{}", self.data_dir.join("postern.db").display()));
        self.database_url.clone().unwrap_or_else(own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_common::settings::Sources;

    /// No setting that has a place here is read and then left out.
    #[test]
    fn what_an_operator_sets_is_in_it() {
        let given = [
            ("POSTERN_SANDBOX_MAX_PIDS", "77"),
            ("POSTERN_RETENTION_EVENTS", "3d"),
            ("POSTERN_ISOLATION", "namespaces"),
            ("POSTERN_MIGRATE", "check"),
        ];
        let environment = given.map(|(variable, text)| (variable.to_owned(), text.to_owned())).into();
        let settings = Settings::resolve(&Sources { environment, ..Sources::default() }).expect("resolves");
        let config = Config::of(&settings, PathBuf::from("/data"));
        assert_eq!(config.caps.pids, 77);
        assert_eq!(config.kept.events, Duration::from_hours(72));
        assert_eq!(config.isolation, Some(Isolation::Namespaces));
        assert_eq!(config.migrate, Some(AtStart::Check));
        assert_eq!(config.data_dir, PathBuf::from("/data"));
        let untold = Settings::resolve(&Sources::default()).expect("resolves");
        assert_ne!(Config::of(&untold, PathBuf::new()).caps.pids, 77);
    }
}
