// SPDX-License-Identifier: Apache-2.0
//! `postern filter`: the author's kit. What works without a server comes first: a folder, a
//! component, cases, figures; then what a server is asked for.
//!
//! Everything local runs in the engine that gateways run, so that what passes here passes there.

mod attach;
mod bench;
mod build;
mod cases;
mod folder;
mod inspect;
mod new;
mod remote;
mod rig;
mod test;

use super::Server;
use crate::arguments::Filter;
use crate::failure::Failure;
use crate::output::Output;
use std::time::Duration;

/// Runs one of the commands.
pub(super) async fn run(
    server: impl FnOnce() -> Result<Server, Failure>,
    wanted: Filter,
    output: Output,
) -> Result<(), Failure> {
    match wanted {
        Filter::New { name, folder } => new::run(&name, folder, output),
        Filter::Build { folder } => build::run(&folder, output).await,
        Filter::Test { folder, only } => test::run(&folder, only.as_deref(), output).await,
        Filter::Bench { folder, only, seconds } => {
            let time = Duration::from_secs(u64::from(seconds.get()));
            bench::run(&folder, only.as_deref(), time, output).await
        }
        Filter::Inspect { folder } => inspect::run(&folder, output).await,
        Filter::Ls => remote::list(&server()?).await,
        Filter::Push(wanted) => remote::push(&server()?, wanted).await,
        Filter::Activate { name, wanted } => remote::activate(&server()?, &name, wanted).await,
        Filter::Rollback { name, to } => remote::rollback(&server()?, &name, to).await,
        Filter::Status { name } => remote::status(&server()?, &name).await,
        Filter::Logs { name, follow } => remote::logs(&server()?, &name, follow).await,
    }
}
