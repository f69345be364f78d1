// SPDX-License-Identifier: Apache-2.0
//! First-party filter: blanks secrets in what a backend answers.
//!
//! An agent that can read a ticket can read the key that somebody pasted into it, and carry it
//! away. Known kinds of keys and tokens, private keys in PEM and the tenant's own prefixes become
//! `[redacted]`, also where a stream cuts them in two. It works on bytes, so that it takes JSON,
//! text and events alike; what is encoded (base64 of a key, say) it does not see.

mod scan;

use postern_sdk_wasm::{Filter, Rejection, Response, Verdict, count, register};

/// What can be kept back of a part: half of the manifest's `response_chunk`.
const MOST_OPEN: usize = 16 * 1024;

/// What else is a secret.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How the tenant's own secrets begin.
    prefixes: Vec<String>,
}

/// The filter.
#[derive(Debug)]
pub struct SecretRedaction {
    config: Config,
}

impl Filter for SecretRedaction {
    type Config = Config;

    fn new(config: Config) -> Self {
        Self { config }
    }

    fn on_response(&self, response: &mut Response) -> Verdict {
        let body = response.body();
        let part = response.part();
        let scanned = scan::scan(&body, part.is_last, &self.config.prefixes);
        if scanned.open > MOST_OPEN.min(body.len()) {
            // It may be a secret or only a very long word; nothing of it passes unseen.
            let message = "the answer holds a word that is too long to be looked at";
            return Rejection::new("word-too-long", message).with_status(422).into();
        }
        if scanned.redacted > 0 {
            count("redacted", scanned.redacted);
            response.set_body(&scanned.passed);
        }
        if scanned.open > 0 {
            response.keep(u32::try_from(scanned.open).unwrap_or(u32::MAX));
        }
        Verdict::Continue
    }
}

register!(SecretRedaction);

#[cfg(test)]
mod tests;
