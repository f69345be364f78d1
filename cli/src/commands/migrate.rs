// SPDX-License-Identifier: Apache-2.0
//! `postern migrate`: the database's tables, brought up to date or back. It speaks to the database
//! itself, and keeps the books of golang-migrate: either goes on where the other stopped.

use crate::arguments::Migrate;
use crate::failure::Failure;
use crate::output::{Output, table};
use crate::up::DataFolder;
use anyhow::Context as _;
use postern_common::settings::{Settings, name};
use postern_orchestrator::{Config, MigrateError, Migrations};
use serde_json::json;

/// Runs one of the commands.
pub(super) async fn run(wanted: Migrate, settings: &Settings, output: Output) -> Result<(), Failure> {
    let data = settings.path(name::DATA_DIR).context("a setting with a default")?;
    let url = settings.secret(name::DATABASE_URL);
    // The embedded database has one user: whoever holds the data folder.
    let _alone = match (&url, &wanted) {
        (None, Migrate::Up { .. } | Migrate::Down { .. } | Migrate::Force { .. }) => {
            Some(DataFolder::open(&data)?)
        }
        _ => None,
    };
    let config = Config { database_url: url, ..Config::new(data) };
    let migrations = Migrations::open(&config.database()).await.map_err(anyhow::Error::new)?;
    let done = act(&migrations, wanted, output).await;
    migrations.close().await;
    done
}

async fn act(migrations: &Migrations, wanted: Migrate, output: Output) -> Result<(), Failure> {
    let failed = |error: MigrateError| Failure::Failed(anyhow::Error::new(error));
    match wanted {
        Migrate::Status => return status(migrations, output).await,
        Migrate::Up { to } => {
            let each = |version| output.note(&format!("migration {version} is done"));
            migrations.up(to, each).await.map_err(failed)?;
        }
        Migrate::Down { yes: false, .. } => {
            return Err(Failure::Usage("what the tables of a step hold is lost with it: say `--yes`".into()));
        }
        Migrate::Down { steps, yes: true } => {
            let each = |version: i64| output.note(&format!("back at migration {}", version.max(0)));
            migrations.down(steps, each).await.map_err(failed)?;
        }
        Migrate::Force { at } => migrations.force(at).await.map_err(failed)?,
        Migrate::Grant { role } => {
            migrations.grant(&role).await.map_err(failed)?;
            output.note(&format!(
                "`{role}` can be an orchestrator's role; of the audit logs it only adds and reads"
            ));
            return Ok(());
        }
    }
    let found = migrations.status().await.map_err(failed)?;
    output.answer(&json!({ "version": found.version }), || format!("at migration {}", found.version));
    Ok(())
}

async fn status(migrations: &Migrations, output: Output) -> Result<(), Failure> {
    let found = migrations.status().await.map_err(|error| Failure::Failed(error.into()))?;
    let done = |done: bool| if done { "done" } else { "missing" }.to_owned();
    let rows: Vec<_> = found
        .steps
        .iter()
        .map(|step| vec![step.version.to_string(), step.name.to_owned(), done(step.done)])
        .collect();
    output.answer(&found, || {
        let dirty = if found.dirty { " (interrupted: mend it, then `postern migrate force`)" } else { "" };
        format!("at migration {}{dirty}\n{}", found.version, table(&["VERSION", "NAME", "STATE"], &rows))
    });
    Ok(())
}
