// SPDX-License-Identifier: Apache-2.0
//! What the shim of a local sandbox is made of, shared with the orchestrator's local runtime,
//! which starts shims, talks to them, and sweeps up after those that were killed.
//!
//! ```text
//! orchestrator ──spawns──▶ postern-shim run FOLDER       one per sandbox, outlives the orchestrator
//!                               └─ postern-shim launch … ── exec ─▶ bwrap | runsc    (cgroup, uid, seccomp)
//!                                                                     └─ sandboxd    (process 1 inside)
//! ```
//!
//! The shim is trusted, `sandboxd` is not: all that it says is passed on within bounds, and
//! nothing that it says changes what the shim does, save that its silence ends the sandbox.

pub mod bubblewrap;
pub mod cgroup;
pub mod channel;
pub mod control;
pub mod disk;
pub mod exit;
pub mod folder;
pub mod gvisor;
pub mod image;
pub mod inherited;
pub mod kernel;
pub mod launch;
pub mod memory;
pub mod mounts;
pub mod processes;
pub mod restrictions;
pub mod rootfs;
pub mod seccomp;
pub mod spec;
pub mod supervise;
