// SPDX-License-Identifier: Apache-2.0
//! `postern-compile`: one component in, one compiled filter out, in a process that can do nothing
//! else.
//!
//! ```text
//! postern-compile compile [--cpu-seconds N] [--memory-bytes N] < filter.wasm > filter.compiled
//! postern-compile wrap module.wasm component.wasm
//! postern-compile fingerprint
//! ```
//! `compile` reads its input, gives up memory, CPU time, files and nearly all system calls, and
//! only then looks at what it read. `wrap` is a build step for one's own modules, without bounds;
//! `fingerprint` says which engine it compiles for.
//! On failure: one line of JSON (`code`, `detail`) on standard error, and an exit code of 1 (ours
//! or the component's fault) or 2 (wrong usage).

mod confine;

use postern_filter_engine::child::{Bounds, Complaint};
use postern_filter_engine::compile::{CompileError, MAX_COMPONENT_BYTES, compile, wrap};
use postern_filter_engine::settings::fingerprint;
use std::io::{Read as _, Write as _};
use std::process::ExitCode;

/// Why nothing was compiled.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(
        "usage: postern-compile compile [--cpu-seconds N] [--memory-bytes N] | wrap IN OUT | fingerprint"
    )]
    Usage,
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error("could not give up rights")]
    Confine(#[from] confine::ConfineError),
    #[error("the compiler fell over this component; build it with another release of the toolchain")]
    Fell,
    #[error("{what}")]
    Io {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
}

impl Failure {
    const fn code(&self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::Compile(error) => error.code(),
            Self::Confine(_) => "confine",
            Self::Fell => "does-not-compile",
            Self::Io { .. } => "io",
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Err(failure) = run(&arguments) else {
        return ExitCode::SUCCESS;
    };
    complain(&failure);
    ExitCode::from(if matches!(failure, Failure::Usage) { 2 } else { 1 })
}

fn run(arguments: &[String]) -> Result<(), Failure> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.split_first() {
        Some((&"compile", options)) => compile_stdin(&bounds(options)?),
        Some((&"wrap", &[from, to])) => wrap_file(from, to),
        Some((&"fingerprint", &[])) => writeln!(std::io::stdout(), "{}", fingerprint())
            .map_err(|source| Failure::Io { what: "could not write the fingerprint", source }),
        _ => Err(Failure::Usage),
    }
}

fn bounds(mut options: &[&str]) -> Result<Bounds, Failure> {
    let mut bounds = Bounds::default();
    while let Some((&[name, value], rest)) = options.split_first_chunk() {
        let value: u64 = value.parse().map_err(|_not_a_number| Failure::Usage)?;
        match name {
            "--cpu-seconds" => bounds.cpu = std::time::Duration::from_secs(value),
            "--memory-bytes" => bounds.memory_bytes = value,
            _ => return Err(Failure::Usage),
        }
        options = rest;
    }
    if options.is_empty() { Ok(bounds) } else { Err(Failure::Usage) }
}

fn compile_stdin(bounds: &Bounds) -> Result<(), Failure> {
    confine::limit(bounds)?;
    let mut component = Vec::new();
    let most = u64::try_from(MAX_COMPONENT_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    std::io::stdin()
        .lock()
        .take(most)
        .read_to_end(&mut component)
        .map_err(|source| Failure::Io { what: "could not read the component", source })?;
    confine::give_up_system_calls()?;
    let compiled = compile_or_fall(&component)?;
    let mut output = std::io::stdout().lock();
    output
        .write_all(&compiled)
        .and_then(|()| output.flush())
        .map_err(|source| Failure::Io { what: "could not write the compiled filter", source })
}

/// A compiler that panics on a stranger's bytes has refused them. Its report would read files.
fn compile_or_fall(component: &[u8]) -> Result<Vec<u8>, Failure> {
    std::panic::set_hook(Box::new(|_| {}));
    match std::panic::catch_unwind(|| compile(component)) {
        Ok(compiled) => Ok(compiled?),
        Err(_panic) => Err(Failure::Fell),
    }
}

fn wrap_file(from: &str, to: &str) -> Result<(), Failure> {
    let module =
        std::fs::read(from).map_err(|source| Failure::Io { what: "could not read the module", source })?;
    std::fs::write(to, wrap(&module)?)
        .map_err(|source| Failure::Io { what: "could not write the component", source })
}

/// The designated place of this program's output for programs.
fn complain(failure: &Failure) {
    let mut detail = failure.to_string();
    let mut cause = std::error::Error::source(failure);
    while let Some(next) = cause {
        detail = format!("{detail}: {next}");
        cause = next.source();
    }
    let complaint = Complaint { code: failure.code().to_owned(), detail };
    let line = serde_json::to_string(&complaint).unwrap_or_default();
    // Nobody is left to tell if this fails; the exit code still does.
    let _unheard = writeln!(std::io::stderr(), "{line}");
}
