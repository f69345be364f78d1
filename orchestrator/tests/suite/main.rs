// SPDX-License-Identifier: Apache-2.0
//! The orchestrator through the doors that others have: its REST API, and the control stream.
//!
//! Sandboxes are real ones (namespaces). Where a test needs none, the runtime has nothing to run
//! them with, which is real too.

mod bench;
mod configuration;
mod problems;
mod repeats;
mod restart;
mod roles;
mod sandboxes;
