// SPDX-License-Identifier: Apache-2.0
//! How long the database takes for what calls and sweeps wait for most: the connection, the lock and the
//! answer together. A query that failed, or whose caller left, counts too.

use super::Store;
use postern_common::telemetry::SECONDS;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use std::time::Instant;

/// By `query`.
pub(crate) type Times = Family<[(&'static str, &'static str); 1], Histogram>;

pub(super) fn new() -> Times {
    Times::new_with_constructor(|| Histogram::new(SECONDS))
}

/// A query under way; it is over when this is dropped.
pub(super) struct UnderWay {
    times: Histogram,
    begun: Instant,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.times.observe(self.begun.elapsed().as_secs_f64());
    }
}

impl Store {
    /// How long queries took.
    #[must_use]
    pub(crate) fn times(&self) -> Times {
        self.times.clone()
    }

    /// Times a query until what this returns is dropped.
    pub(super) fn time(&self, query: &'static str) -> UnderWay {
        UnderWay { times: self.times.get_or_create(&[("query", query)]).clone(), begun: Instant::now() }
    }
}
