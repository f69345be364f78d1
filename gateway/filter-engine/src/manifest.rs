// SPDX-License-Identifier: Apache-2.0
//! `filter.toml`: what a filter needs. It gets nothing else.
//!
//! ```toml
//! phases = ["request"]                  # and "response"
//! host = ["session", "log"]             # "counter", "rate-limit", "json-schema"
//! body = { request = "64KiB" }          # whole, up to so much; absent: streamed past the filter;
//!                                       # `response = "1MiB"` whole, `response_chunk = "16KiB"` in parts
//! counters = ["refused"]
//! limits = { time = "20ms", memory = "4MiB", host_calls = 1000, log = "8KiB" }
//! [buckets.lookups]
//! per_second = 2.0
//! burst = 10
//! [schemas.order]                       # a JSON Schema
//! type = "object"
//! [config]                              # settings of attachments that bring none
//! [config_schema]                       # a JSON Schema of the settings
//! ```

mod read;

use crate::schema::Schema;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// A manifest that makes sense as a whole.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// Whether the filter is called for responses too. It is always called for requests unless
    /// only responses are asked for.
    pub phases: BTreeSet<Phase>,
    /// The host functions that it may call, beside request, response and config.
    pub host: BTreeSet<HostFunction>,
    /// The longest request body that it takes whole; `None` if bodies stream past it.
    pub request_body: Option<u64>,
    /// The longest response body that it takes whole; `None` if bodies stream past it.
    pub response_body: Option<u64>,
    /// The longest part of a response body that it takes at a time, as the body streams; `None` if
    /// it takes the body whole or not at all.
    pub response_chunk: Option<u64>,
    /// Bounds of one call.
    pub limits: Limits,
    /// The counters that it may add to.
    pub counters: BTreeSet<String>,
    /// Its kinds of token buckets.
    pub buckets: BTreeMap<String, BucketRate>,
    pub(crate) schemas: BTreeMap<String, Schema>,
    pub(crate) config: serde_json::Map<String, serde_json::Value>,
    pub(crate) config_schema: Option<Schema>,
}

/// When a filter is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Before the request is forwarded.
    Request,
    /// Before the response is answered.
    Response,
}

/// Something that the host does for a filter; each is an interface of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostFunction {
    /// Claims and ids of the session.
    Session,
    /// A log for the filter's author.
    Log,
    /// Counters for the operator.
    Counter,
    /// Token buckets.
    RateLimit,
    /// JSON Schema checks.
    JsonSchema,
}

impl HostFunction {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Session, Self::Log, Self::Counter, Self::RateLimit, Self::JsonSchema];

    /// The name in manifests, and of the interface in the contract.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Log => "log",
            Self::Counter => "counter",
            Self::RateLimit => "rate-limit",
            Self::JsonSchema => "json-schema",
        }
    }
}

/// Bounds of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Running time, in ticks of [`TICK`](crate::settings::TICK); a call that has to take turns
    /// may take longer by the clock.
    pub time: Duration,
    /// Linear memory.
    pub memory: u64,
    /// Calls of host functions.
    pub host_calls: u32,
    /// Bytes of log; what is longer is cut off.
    pub log: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { time: DEFAULT_TIME, memory: DEFAULT_MEMORY, host_calls: DEFAULT_HOST_CALLS, log: DEFAULT_LOG }
    }
}

/// A thousand times what a header filter takes (20 µs), and short beside a backend's answer.
const DEFAULT_TIME: Duration = Duration::from_millis(20);
/// The longest that may be asked for.
const MAX_TIME: Duration = Duration::from_secs(1);
/// Room for a JSON body of 64 KiB several times over.
const DEFAULT_MEMORY: u64 = 4 << 20;
/// One page: less cannot hold a stack.
const MIN_MEMORY: u64 = 64 << 10;
/// Each header of a large request, ten times.
const DEFAULT_HOST_CALLS: u32 = 1_000;
/// The most that may be asked for.
const MAX_HOST_CALLS: u32 = 100_000;
/// A hundred lines.
const DEFAULT_LOG: u32 = 8 << 10;
/// The most that may be asked for.
const MAX_LOG: u32 = 64 << 10;
/// The largest body that a filter may ask for.
const MAX_BODY: u64 = 16 << 20;
/// The smallest part of a streamed body: less makes a call for every few words.
const MIN_CHUNK: u64 = 1 << 10;
/// The largest part of a streamed body: a stream is not to be held up for more.
const MAX_CHUNK: u64 = 256 << 10;
/// Counters, buckets and schemas of one filter, each.
const MAX_NAMED: usize = 32;

/// The rate of one kind of bucket.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BucketRate {
    /// Tokens that come back each second; above zero.
    pub per_second: f64,
    /// Tokens that may be saved up; at least 1.
    pub burst: u32,
}

/// One mistake in a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestMistake {
    /// The key, such as `limits.time`, or the line where the text is no TOML.
    pub place: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for ManifestMistake {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.place, self.message)
    }
}

/// Every mistake of a manifest; there is at least one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ManifestMistakes(pub Vec<ManifestMistake>);

impl fmt::Display for ManifestMistakes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} mistakes in filter.toml", self.0.len())?;
        self.0.iter().try_for_each(|mistake| write!(formatter, "\n  {mistake}"))
    }
}

impl Manifest {
    /// Reads the text of a `filter.toml`.
    ///
    /// # Errors
    /// [`ManifestMistakes`] lists every mistake, not the first.
    pub fn parse(text: &str) -> Result<Self, ManifestMistakes> {
        read::manifest(text)
    }

    /// Whether the filter is called in this phase.
    #[must_use]
    pub fn has(&self, phase: Phase) -> bool {
        self.phases.contains(&phase)
    }

    /// Whether it sees anything of a response's body.
    #[must_use]
    pub const fn reads_responses(&self) -> bool {
        self.response_body.is_some() || self.response_chunk.is_some()
    }
}

#[cfg(test)]
mod tests;
