// SPDX-License-Identifier: Apache-2.0
//! The orchestrator through the doors that others have: its REST API, and the control stream.
//!
//! Sandboxes are real ones (namespaces). Where a test needs none, the runtime has nothing to run
//! them with, which is real too.

#[cfg(test)]
mod bench;
#[cfg(test)]
mod configuration;
#[cfg(test)]
mod exec;
#[cfg(test)]
mod files;
#[cfg(test)]
mod inside;
#[cfg(test)]
mod log;
#[cfg(test)]
mod pause;
#[cfg(test)]
mod policy_set;
#[cfg(test)]
mod pool;
#[cfg(test)]
mod problems;
#[cfg(test)]
mod repeats;
#[cfg(test)]
mod restart;
#[cfg(test)]
mod roles;
#[cfg(test)]
mod sandboxes;
#[cfg(test)]
mod scopes;
#[cfg(test)]
mod screen;
#[cfg(test)]
mod snapshots;
#[cfg(test)]
mod stop;
#[cfg(test)]
mod terminals;
#[cfg(test)]
mod token_file;
