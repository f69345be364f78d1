// SPDX-License-Identifier: Apache-2.0
//! `make bench-filters`: what filters cost, in a gateway that serves requests and in its engine.
//!
//! The gateway runs on a thread of its own, whose processor time is what counts; backend and load
//! are elsewhere. Requests rotate over 1,000 sessions, 20 routes and a query value that never
//! repeats. Each row is the difference to the same requests without a filter, measured in turns in
//! the same run. Memory is measured in processes of their own. Prints a table and writes
//! `target/bench/filters.json`.
//!
//! Two proofs that are too long for a test use the same gateway: `--prove-reload N` and
//! `--prove-hostile N`.

#[path = "../../filter-engine/tests/engine/plugins.rs"]
#[expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "shared with the suites: it stops at what it did not expect"
)]
mod plugins;

mod awake;
mod engine;
mod hostile;
mod neighbour;
mod proofs;
mod report;
mod serving;

use anyhow::Result;
use report::Report;

/// Words that ask for a part alone, each in a process of its own.
const LOADED: &str = "--loaded";
const IN_FLIGHT: &str = "--in-flight";
const CALL: &str = "--call";

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let asks = |word: &str| words.iter().any(|given| given == word);
    if asks(LOADED) {
        return engine::loaded();
    }
    if asks(CALL) {
        return engine::call();
    }
    if asks(IN_FLIGHT) {
        return engine::in_flight();
    }
    if asks("--prove-reload") {
        return proofs::reload(number_in(&words, 10_000));
    }
    if asks("--prove-hostile") {
        return hostile::prove(number_in(&words, 3));
    }
    let mut report = Report::default();
    serving::measure(&mut report)?;
    engine::measure(&mut report)?;
    report.finish()
}

/// The number among the words.
fn number_in(words: &[String], usual: u32) -> u32 {
    words.iter().find_map(|word| word.parse().ok()).unwrap_or(usual)
}
