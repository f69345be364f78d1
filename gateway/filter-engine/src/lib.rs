// SPDX-License-Identifier: Apache-2.0
//! Runs tenants' WebAssembly filters: one place for the engine's settings, the format of compiled
//! artefacts, and calls that cannot hurt anyone but their own tenant.
//!
//! ```text
//!  filter.wasm ──child──▶ postern-compile ──▶ Compiled ──sign──▶ artefact ──▶ control stream
//!  (untrusted)            (feature compile)                                        │
//!  request ──▶ ConfiguredFilter::on_request ◀── LoadedFilter ◀── Engine::load ◀── verify
//! ```
//!
//! A gateway uses it without the feature `compile` and so links no compiler. What a filter's
//! verdict means for a request, and the order of filters, are the gateway's business.

pub mod artefact;
mod aside;
mod bindings;
mod buckets;
mod call;
pub mod child;
#[cfg(feature = "compile")]
pub mod compile;
mod contract;
mod digest;
mod engine;
mod failure;
mod filter;
mod gauge;
mod host;
mod linkers;
pub mod manifest;
mod names;
mod outcome;
mod schema;
pub mod settings;
mod suspicion;
mod ticker;
mod view;

pub use digest::{Digest, Fingerprint, InvalidDigest};
pub use engine::{Engine, EngineError, EngineSettings, LoadFilterError};
pub use failure::FilterFailure;
pub use filter::{Called, ConfigMistakes, ConfiguredFilter, Context, LoadedFilter};
pub use outcome::{Change, Changes, LogLevel, LogLine, Outcome, Rejection};
pub use view::{Part, RequestView, ResponseView};
