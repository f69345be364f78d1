// SPDX-License-Identifier: Apache-2.0
//! The gateway through its doors: real sockets, a real backend that records what reaches it, a
//! real control link, policies and documents. Every refusal is shown to reach no backend, and
//! every attack has a control that does.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test stops at what it did not expect, also in its helping functions"
)]

mod alone;
mod answers;
mod backends;
mod bodies;
mod certificates;
mod chains;
mod disguises;
mod filters;
mod fuzz;
mod h2spec;
mod identity;
mod logged;
mod multiparts;
#[path = "../../filter-engine/tests/engine/plugins.rs"]
mod plugins;
mod refusals;
mod shadow;
mod slips;
mod smuggling;
mod stream;
mod streams;
mod syncs;
mod tenancy;
mod tls;
mod websockets;
mod world;
