// SPDX-License-Identifier: Apache-2.0
//! `postern-shim`: owns one local sandbox, from start to end (see the library).
//!
//! ```text
//! postern-shim run FOLDER         for the orchestrator: prints its status when the sandbox serves
//! postern-shim launch … -- …      for itself: becomes the runtime
//! ```

use postern_shim::control::Status;
use postern_shim::folder::RunFolder;
use postern_shim::inherited;
use postern_shim::launch::Launch;
use postern_shim::supervise;
use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    inherited::close();
    let mut arguments = std::env::args_os().skip(1);
    let done = match (arguments.next().as_deref().and_then(|verb| verb.to_str()), arguments.next()) {
        (Some("launch"), Some(first)) => launch(std::iter::once(first).chain(arguments)),
        (Some("run"), Some(folder)) => run(&RunFolder::new(folder)),
        _ => Err("usage: postern-shim run FOLDER".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(error.as_ref());
            ExitCode::FAILURE
        }
    }
}

fn launch(arguments: impl Iterator<Item = std::ffi::OsString>) -> Result<(), Box<dyn Error>> {
    Err(Launch::parse(arguments)?.execute().into())
}

fn run(folder: &RunFolder) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(supervise::run(folder, tell_ready))?;
    Ok(())
}

/// Tells whoever started us what it is now and lets go of their streams, so that we outlive them.
fn tell_ready(status: &Status) {
    // If they are gone already, the sandbox lives on and waits to be adopted.
    if let Ok(line) = serde_json::to_string(status) {
        let _ = writeln!(std::io::stdout(), "{line}").is_ok();
    }
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
}

/// The one place that prints errors: the orchestrator reads them when a start fails.
#[expect(clippy::print_stderr, reason = "the orchestrator reads standard error to say why a start failed")]
fn report(error: &dyn Error) {
    eprint!("{error}");
    let mut cause = error.source();
    while let Some(inner) = cause {
        eprint!(": {inner}");
        cause = inner.source();
    }
    eprintln!();
}
