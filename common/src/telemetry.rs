// SPDX-License-Identifier: Apache-2.0
//! Logs and the shape of metrics: what is decided once for every process.
//!
//! Each room registers its own metrics (prefix `postern_`, contracts: Metrics) in the one
//! [`prometheus_client::registry::Registry`] of its process.

use prometheus_client::registry::Registry;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Bucket bounds, in seconds, of every histogram of ours: 10 µs to 60 s, three a decade, so that
/// dashboards can compare any two.
pub const SECONDS: [f64; 19] = [
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1,
    0.25, 0.5, 1.0, 5.0, 15.0, 60.0,
];

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people at a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging to standard error. `filter` is in `RUST_LOG` syntax, such as
/// `info,postern_gateway=debug`; what cannot be read falls back to `info`.
///
/// Does nothing if logging was started before.
pub fn start_logging(format: LogFormat, filter: &str) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    // A second start (tests in one process) keeps the first: that is what is wanted.
    drop(match format {
        LogFormat::Text => registry.with(layer.with_target(false)).try_init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    });
}

/// An empty registry whose metrics carry our prefix.
#[must_use]
pub fn registry() -> Registry {
    Registry::with_prefix("postern")
}

/// The registry's metrics in the OpenMetrics text format.
#[must_use]
pub fn exposition(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing to a `String` cannot fail; half an answer would be worse than none.
    if prometheus_client::encoding::text::encode(&mut text, registry).is_err() {
        text.clear();
    }
    text
}

/// The content type of [`exposition`].
pub const EXPOSITION_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
