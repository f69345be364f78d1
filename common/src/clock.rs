// SPDX-License-Identifier: Apache-2.0
//! The one place that reads the wall clock.
//!
//! Everything that decides by time takes the time as an argument; only the edges (an accepted
//! connection, a tick of a task) call [`now`]. So expiry is testable without waiting for it.

use jiff::Timestamp;

/// The wall-clock time, for handing down as an argument.
#[must_use]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// Whole seconds since 1970, as tokens spell time (RFC 7519 §2, NumericDate). Never negative.
#[must_use]
pub fn unix_seconds(at: Timestamp) -> u64 {
    u64::try_from(at.as_second()).unwrap_or(0)
}
