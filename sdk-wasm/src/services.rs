// SPDX-License-Identifier: Apache-2.0
//! What the host does for a filter beside the request. Each needs its name in the manifest's
//! `host`; a filter that calls what its manifest does not name is refused when it is loaded.

use crate::host;

/// How much a message matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// For somebody who is looking for a fault.
    Debug,
    /// Worth knowing.
    Info,
    /// Needs somebody's attention.
    Warn,
}

/// Writes one line to the filter's log. Needs `"log"`.
pub fn log(level: Level, message: &str) {
    let level = match level {
        Level::Debug => host::log::Level::Debug,
        Level::Info => host::log::Level::Info,
        Level::Warn => host::log::Level::Warn,
    };
    host::log::write(level, message);
}

/// Adds to a counter that the manifest declares. Needs `"counter"`.
pub fn count(name: &str, amount: u32) {
    host::counter::add(name, amount);
}

/// Takes `cost` tokens from bucket `key` of the kind `bucket` of the manifest. Needs
/// `"rate-limit"`.
///
/// # Errors
/// The milliseconds until they would be there; then nothing is taken.
pub fn take_tokens(bucket: &str, key: &str, cost: u32) -> Result<(), u64> {
    host::rate_limit::take(bucket, key, cost).map_or(Ok(()), Err)
}

/// A mistake that a JSON Schema found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where: a JSON pointer.
    pub pointer: String,
    /// What is wrong there.
    pub message: String,
}

/// Checks the request's body against a schema of the manifest, without reading it in the filter.
/// Needs `"json-schema"`.
#[must_use]
pub fn check_json(schema: &str) -> Vec<Mistake> {
    host::json_schema::check_body(schema)
        .into_iter()
        .map(|found| Mistake { pointer: found.pointer, message: found.message })
        .collect()
}

/// A claim of the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// A claim that is a string, as it is.
    Text(String),
    /// Any other claim, as JSON text.
    Json(String),
}

/// Who calls. Needs `"session"`.
#[derive(Debug, Clone, Copy)]
pub struct Session;

impl Session {
    /// What the application says of the user beside identity.
    #[must_use]
    pub fn claim(self, name: &str) -> Option<Claim> {
        host::session::claim(name).map(|claim| match claim {
            host::session::ClaimValue::Text(text) => Claim::Text(text),
            host::session::ClaimValue::Json(json) => Claim::Json(json),
        })
    }

    /// The application's id of the user.
    #[must_use]
    pub fn user_id(self) -> String {
        host::session::user_id()
    }

    /// The application's id of the conversation.
    #[must_use]
    pub fn conversation_id(self) -> String {
        host::session::conversation_id()
    }

    /// The sandbox.
    #[must_use]
    pub fn sandbox_id(self) -> String {
        host::session::sandbox_id()
    }
}
