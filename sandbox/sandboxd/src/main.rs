// SPDX-License-Identifier: Apache-2.0
//! `postern-sandboxd`: process 1 inside a sandbox.
//!
//! It starts and reaps the agent's processes, and holds the door: the one way out. It runs with
//! no more rights than the agent, so it protects nothing but the session token in its memory;
//! whoever listens to it must treat its words as the agent's own. Its control channel is its
//! standard input and output, on which it is the HTTP/2 server.
//!
//! ```text
//! orchestrator ── shim ── stdin/stdout ── control ─┬─ identity  (Identify, Token)
//!                                                  └─ process   (Start, Connect, List, ...)
//! agent ── 127.0.0.1:49980 ── door ── /run/postern/gateway.sock ── gateway
//! ```

mod channel;
mod confine;
mod connect;
mod control;
mod door;
mod identity;
mod options;
mod process;
mod reaper;

use options::Options;
use postern_common::tasks::Tasks;
use std::process::ExitCode;
use std::sync::Arc;

/// Why `sandboxd` could not serve.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("wrong usage: {0}")]
    Usage(#[from] options::UsageError),
    #[error("could not close this process to the agent's own; the kernel refused")]
    Confine(#[from] confine::ConfineError),
    #[error("could not take standard input and output as control channel; start it with two pipes")]
    Channel(#[source] std::io::Error),
    #[error("could not start the event loop")]
    Runtime(#[source] std::io::Error),
    #[error("could not watch for ended processes")]
    Reaper(#[source] std::io::Error),
    #[error("could not open the door on {address}; is the port taken, or loopback down?")]
    Door { address: std::net::SocketAddr, source: std::io::Error },
    #[error("the control channel failed")]
    Control(#[source] hyper::Error),
}

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<(), StartError> {
    let options = Options::parse(std::env::args_os().skip(1))?;
    confine::close_to_other_processes()?;
    confine::hide_clone3()?;
    if options.landlock {
        confine::restrict_files()?;
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Runtime)?;
    runtime.block_on(run(options))
}

/// Serves until the other end of the control channel closes it.
async fn run(options: Options) -> Result<(), StartError> {
    let tasks = Tasks::new();
    let channel = channel::take_standard_streams().map_err(StartError::Channel)?;
    let identity = Arc::new(identity::Identity::default());
    let exits = reaper::watch(&tasks).map_err(StartError::Reaper)?;
    let address = options.door;
    door::open(&options, Arc::clone(&identity), &tasks)
        .await
        .map_err(|source| StartError::Door { address, source })?;
    let processes = process::Processes::new(exits, Arc::clone(&identity), options.home, tasks.clone());
    let served = control::serve(channel, control::Services::new(identity, processes), &tasks).await;
    tasks.stop();
    served.map_err(StartError::Control)
}

/// The one place that prints: nobody listens on the control channel yet, or any more.
#[expect(clippy::print_stderr, reason = "the shim reads standard error to say why a start failed")]
fn report(error: &StartError) {
    eprint!("postern-sandboxd: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        eprint!(": {inner}");
        cause = inner.source();
    }
    eprintln!();
}
