// SPDX-License-Identifier: Apache-2.0
//! `postern filter build`: from Rust to a component that the gateway takes.
//!
//! Cargo builds a core module; `postern-compile` makes a component of it and compiles that as the
//! orchestrator will, so that a filter which cannot be pushed is told of here.

use super::folder::FilterFolder;
use super::rig::Rig;
use crate::failure::Failure;
use crate::output::Output;
use anyhow::{Context as _, anyhow};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

const TARGET: &str = "wasm32-unknown-unknown";

pub(super) async fn run(folder: &Path, output: Output) -> Result<(), Failure> {
    let folder = FilterFolder::open(folder)?;
    let begun = Instant::now();
    if folder.path.join("Cargo.toml").is_file() {
        output.note("building the module (cargo)");
        let module = cargo(&folder.path, output)?;
        wrap(&folder, &module)?;
    } else if !folder.component_path().is_file() {
        let wanted = folder.component_path();
        return Err(anyhow!(
            "there is no Cargo.toml: put the component that your own tools make at `{}`",
            wanted.display()
        )
        .into());
    }
    output.note("compiling as the orchestrator will");
    let rig = Rig::load(&folder).await?;
    let (component, code) = (rig.component_bytes, rig.code_bytes);
    let took = begun.elapsed();
    let told = json!({
        "filter": folder.name,
        "component": folder.component_path(),
        "component_bytes": component,
        "code_bytes": code,
        "milliseconds": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
    });
    output.answer(&told, || {
        format!(
            "{}: {:.1} KB, {:.1} KB compiled, {:.1} s",
            folder.component_path().display(),
            kilobytes(component),
            kilobytes(code),
            took.as_secs_f64()
        )
    });
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a size to read, with one decimal")]
pub(super) fn kilobytes(bytes: usize) -> f64 {
    bytes as f64 / 1000.0
}

/// Builds the module; what cargo says of its progress goes where ours goes.
fn cargo(folder: &Path, output: Output) -> Result<PathBuf, Failure> {
    has_target(folder)?;
    // Everything may be here already: then nothing is asked of a network.
    let fetched = command(folder)
        .args(["fetch", "--offline", "--quiet", "--target", TARGET])
        .stderr(Stdio::null())
        .status()
        .map_err(|error| no_cargo(&error))?;
    let mut build = command(folder);
    build.args(["build", "--release", "--target", TARGET, "--message-format=json-render-diagnostics"]);
    if fetched.success() {
        build.arg("--offline");
    } else {
        output.note("fetching serde, serde_json and wit-bindgen (once)");
    }
    let built = build.stderr(Stdio::inherit()).output().map_err(|error| no_cargo(&error))?;
    if !built.status.success() {
        let hint = if fetched.success() { "" } else { "; without a network, build once where there is one" };
        return Err(anyhow!("cargo did not build the filter; what it says is above{hint}").into());
    }
    let module = built.stdout.split(|byte| *byte == b'\n').filter_map(module_of).next_back();
    Ok(module.context("cargo built no module: set crate-type = [\"cdylib\", \"rlib\"] in Cargo.toml")?)
}

fn command(folder: &Path) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(folder).stdin(Stdio::null());
    command
}

fn no_cargo(error: &std::io::Error) -> Failure {
    anyhow!("cargo cannot be run ({error}); install Rust with rustup: https://rustup.rs").into()
}

/// The module that a line of cargo's tells of.
fn module_of(line: &[u8]) -> Option<PathBuf> {
    let message: Value = serde_json::from_slice(line).ok()?;
    let files = message.get("filenames")?.as_array()?;
    let mut files = files.iter().filter_map(Value::as_str).map(PathBuf::from);
    files.find(|file| file.extension().is_some_and(|ending| ending == "wasm"))
}

/// Whether the toolchain can build for WebAssembly; else how to make it.
fn has_target(folder: &Path) -> Result<(), Failure> {
    let asked = Command::new("rustc")
        .current_dir(folder)
        .args(["--print", "target-libdir", "--target", TARGET])
        .output()
        .map_err(|error| no_cargo(&error))?;
    let place = String::from_utf8_lossy(&asked.stdout);
    if asked.status.success() && Path::new(place.trim()).is_dir() {
        return Ok(());
    }
    Err(anyhow!("this Rust cannot build for WebAssembly yet: `rustup target add {TARGET}`").into())
}

/// Makes a component of the module, beside the manifest.
fn wrap(folder: &FilterFolder, module: &Path) -> Result<(), Failure> {
    let compiler = folder.compiler()?;
    let wrapped = Command::new(&compiler).arg("wrap").arg(module).arg(folder.component_path()).output();
    let wrapped = wrapped.with_context(|| format!("`{}` cannot be run", compiler.display()))?;
    if wrapped.status.success() {
        return Ok(());
    }
    let complaint: Value = serde_json::from_slice(&wrapped.stderr).unwrap_or_default();
    let detail = complaint.get("detail").and_then(Value::as_str).unwrap_or("the compiler fell over it");
    Err(anyhow!("{detail}").into())
}
