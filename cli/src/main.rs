// SPDX-License-Identifier: Apache-2.0
//! `postern`: everything in one process (`up`), and every call of the API from a shell.
//!
//! Reads the command line, the environment and `postern.toml` here and nowhere else, runs one
//! command, and turns its end into an exit code. What commands do is in [`commands`].

mod arguments;
mod client;
mod commands;
mod connection;
mod demo;
mod failure;
mod output;
mod up;

use arguments::{Arguments, Command};
use clap::Parser as _;
use failure::Failure;
use output::Output;
use postern_common::process::settings_file;
use postern_common::settings::{SettingMistakes, Settings, Sources};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use up::Surroundings;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let output = Output::new(arguments.json);
    match run(arguments, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(arguments: Arguments, output: Output) -> Result<(), Failure> {
    let environment = environment();
    let mut around = surroundings(&environment);
    let sources = Sources {
        flags: arguments.setting_flags(),
        environment,
        file: settings_file(arguments.settings.as_deref())
            .map_err(|error| Failure::Usage(error.to_string()))?,
    };
    let usage = |mistakes: SettingMistakes| Failure::Usage(mistakes.to_string());
    let settings = match (Settings::resolve(&sources), &arguments.command) {
        (Err(mistakes), Command::Doctor) => {
            around.mistakes = Some(mistakes);
            Settings::resolve(&Sources::default()).map_err(usage)?
        }
        (resolved, _) => resolved.map_err(usage)?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(commands::run(arguments.command, settings, &around, output));
    // A read of standard input cannot be cancelled; it must not keep a finished command alive.
    runtime.shutdown_background();
    ended
}

/// The environment's variables that are text; ours always are.
fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// What is no setting of ours but tells where to look.
fn surroundings(environment: &BTreeMap<String, String>) -> Surroundings {
    let cache = environment.get("POSTERN_CACHE").map(PathBuf::from);
    let own = environment.get("HOME").map(|home| Path::new(home).join(".cache/postern"));
    Surroundings {
        mistakes: None,
        path: environment.get("PATH").map(OsString::from).unwrap_or_default(),
        cache: cache.or(own),
    }
}
