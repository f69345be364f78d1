// SPDX-License-Identifier: Apache-2.0
//! Makes and destroys sandboxes, mints and revokes their sessions, keeps their users' files.
//!
//! ```text
//!  api ──▶ configuration ──▶ check, operations        store (SQLite, Postgres)
//!   │            └──────────▶ control ──▶ gateways       ▲
//!   └────▶ driver ──▶ lifecycle (pure)                   │ every change, before its effect
//!             ├─────▶ runtime (local), files, sessions ──┘
//!                              storage (users' files: a folder, S3, Azure Blob, GCS)
//! ```
//!
//! Start in two steps: [`Prepared::open`] opens database and keys, which tells the installation
//! that a runtime works for; [`Prepared::start`] reconciles and returns the [`Orchestrator`]. It
//! reads no environment and binds no address: both are `main`'s.

mod admin;
mod api;
mod artefacts;
mod asked;
mod audit;
mod check;
mod config;
pub mod configuration;
mod control;
mod driver;
mod files;
mod filter_log;
mod host;
pub mod keys;
mod lifecycle;
mod memory;
mod operations;
mod orchestrator;
mod policy_set;
mod pool;
mod replicas;
mod retention;
mod rights;
pub mod runtime;
mod seal;
mod sealed;
mod sessions;
pub mod setup;
mod snapshots;
mod storage;
mod store;
mod stream;
mod sync;
mod tenant;

pub use config::Config;
pub use driver::Reconciled;
pub use host::{Host, PreparedSync, UserFolder};
pub use orchestrator::{Claim, Orchestrator, Prepared, StartError};
pub use seal::SealError;
pub use storage::ConnectError;
pub use store::{
    AtStart, Kind, MigrateError, MigrationStatus, MigrationStep, Migrations, OpenError, Owner, StoreError,
};
pub use stream::AuthorityError;
pub use sync::FilesListener;
