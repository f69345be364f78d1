// SPDX-License-Identifier: Apache-2.0
//! What every part of Postern shares, and nothing that only one part needs.
//!
//! Small programs (`sandboxd`, the shim) take it as it is; the feature `server` adds tokens,
//! settings, the tenant's folder and metrics for the gateway, the orchestrator and the CLI.

pub mod channel;
pub mod clock;
#[cfg(feature = "execs")]
pub mod execs;
pub mod files;
pub mod id;
pub mod output;
pub mod problem;
pub mod secret;
pub mod signed;
pub mod tasks;

#[cfg(feature = "server")]
pub mod audit;
#[cfg(feature = "server")]
pub mod control;
#[cfg(feature = "server")]
pub mod decision;
#[cfg(feature = "server")]
pub mod folder;
#[cfg(feature = "server")]
pub mod process;
#[cfg(feature = "server")]
pub mod retention;
#[cfg(feature = "server")]
pub mod session;
#[cfg(feature = "server")]
pub mod settings;
#[cfg(feature = "server")]
pub mod stream;
#[cfg(feature = "server")]
pub mod telemetry;
#[cfg(feature = "server")]
pub mod token;
#[cfg(feature = "tree")]
pub mod tree;
