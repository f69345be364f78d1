// SPDX-License-Identifier: Apache-2.0
//! What the program does instead of serving, and ends: the work of a chart's Jobs.

use anyhow::Context as _;
use clap::Subcommand;
use postern_common::id::GatewayName;
use postern_common::retention::Report;
use postern_common::settings::{Settings, name};
use postern_orchestrator::keys::GivenKeys;
use postern_orchestrator::setup::{self, Cluster, Key, Outcome};
use postern_orchestrator::{Config, Prepared};
use std::io::Write as _;

/// What to do instead of serving.
#[derive(Debug, Subcommand)]
pub(super) enum Chore {
    /// Bring the database up to date, and end.
    Migrate,
    /// Archive or delete users' files whose time has come, and end.
    Retention {
        /// Only tell what would go.
        #[arg(long)]
        dry_run: bool,
        /// Tell it as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make what an installation in a cluster needs once, and end. What is there stays as it is.
    #[command(subcommand)]
    Setup(Setup),
}

/// What is made.
#[derive(Debug, Subcommand)]
pub(super) enum Setup {
    /// Keys that nobody gave.
    Keys {
        /// The Secret that they go to.
        #[arg(long, value_name = "NAME")]
        secret: String,
        /// The settings that are made, separated by commas.
        #[arg(long, value_name = "SETTING", value_delimiter = ',', required = true)]
        make: Vec<Key>,
        /// The embedded database, for its URL.
        #[arg(long, value_name = "HOST:PORT")]
        database: Option<String>,
    },
    /// The first admin key, and the gateways' credential.
    Access {
        /// The Secret that they go to.
        #[arg(long, value_name = "NAME")]
        secret: String,
        /// What the gateways are called.
        #[arg(long, value_name = "NAME", value_parser = gateway_name)]
        gateway: GatewayName,
    },
    /// Beside sandboxes, whose orders they believe.
    ControlKey {
        /// The ConfigMap that the public half of `POSTERN_SANDBOX_CONTROL_KEY` goes to.
        #[arg(long, value_name = "NAME")]
        config_map: String,
        /// The sandboxes' namespace.
        #[arg(long, value_name = "NAME")]
        namespace: String,
    },
}

fn gateway_name(text: &str) -> Result<GatewayName, String> {
    GatewayName::parse(text).map_err(|error| error.to_string())
}

/// Does it.
pub(super) async fn run(chore: &Chore, settings: &Settings) -> anyhow::Result<()> {
    match chore {
        Chore::Migrate => {
            let url = settings.secret(name::DATABASE_URL);
            setup::migrate(&url.context("no database: set DATABASE_URL or DATABASE_URL_FILE")?).await?;
            tracing::info!("the database is up to date");
        }
        Chore::Retention { dry_run, json } => {
            let report = retire(settings, *dry_run).await?;
            let text = if *json { serde_json::to_string(&report)? } else { report.to_string() };
            writeln!(std::io::stdout(), "{}", text.trim_end())?;
            anyhow::ensure!(
                report.failures == 0,
                "{} files failed; the next run tries them again",
                report.failures
            );
        }
        Chore::Setup(Setup::Keys { secret, make, database }) => {
            let cluster = Cluster::around().await?;
            told(secret, setup::keys(&cluster, secret, make, database.as_deref()).await?);
        }
        Chore::Setup(Setup::Access { secret, gateway }) => {
            let cluster = Cluster::around().await?;
            let prepared = Prepared::open(config(settings)?).await?;
            told(secret, setup::access(&prepared, &cluster, secret, gateway).await?);
        }
        Chore::Setup(Setup::ControlKey { config_map, namespace }) => {
            let public = crate::cluster::public_key(settings)?;
            let cluster = Cluster::around().await?.in_namespace(namespace);
            setup::control_key(&cluster, config_map, &public).await?;
            tracing::info!(config_map, public, "sandboxes believe orders of this key");
        }
    }
    Ok(())
}

/// A whole run; what it did.
async fn retire(settings: &Settings, dry_run: bool) -> anyhow::Result<Report> {
    let prepared = Prepared::open(config(settings)?).await?;
    let each = |files| tracing::info!(files, dry_run, "files so far");
    Ok(prepared.retire_files(dry_run, each).await?)
}

fn told(secret: &str, outcome: Outcome) {
    match outcome {
        Outcome::Made => tracing::info!(secret, "made"),
        Outcome::WasThere => tracing::info!(secret, "was there, and is as it was"),
    }
}

/// Database and keys. Both are wanted: what is made with keys that end with this pod opens nowhere.
fn config(settings: &Settings) -> anyhow::Result<Config> {
    let token = settings.token();
    let master = settings.master_key().context("no data key: set POSTERN_MASTER_KEY_FILE")?;
    let database = settings.secret(name::DATABASE_URL).context("no database: set DATABASE_URL_FILE")?;
    let data = settings.path(name::DATA_DIR).context("a setting with a default")?;
    Ok(Config {
        database_url: Some(database),
        storage: settings.storage(),
        keys: GivenKeys { token: token.signing_key, old_tokens: token.old_keys, master: Some(master) },
        ..Config::new(data)
    })
}
