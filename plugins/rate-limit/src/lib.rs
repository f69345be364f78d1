// SPDX-License-Identifier: Apache-2.0
//! First-party filter: lets a user, conversation or sandbox make so many requests, and no more.
//!
//! The buckets are the host's, so they outlive the filter's instances; the gateway's own limits
//! hold as well. A refused request takes no tokens.

use postern_sdk_wasm::{Filter, Rejection, Request, Session, Verdict, count, register, take_tokens};
use std::collections::BTreeMap;

/// Whom to count, and what requests cost.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    by: By,
    /// Operation to tokens; 1 where it is not named.
    #[serde(default)]
    costs: BTreeMap<String, u32>,
}

/// Who has a bucket of their own.
#[derive(Debug, Clone, Copy, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum By {
    User,
    Conversation,
    Sandbox,
    Operation,
}

/// The filter.
#[derive(Debug)]
pub struct RateLimit {
    config: Config,
}

impl Filter for RateLimit {
    type Config = Config;

    fn new(config: Config) -> Self {
        Self { config }
    }

    fn on_request(&self, request: &mut Request) -> Verdict {
        let operation = request.operation();
        let cost = self.config.costs.get(&operation).copied().unwrap_or(1);
        if cost == 0 {
            return Verdict::Continue;
        }
        let key = match self.config.by {
            By::User => Session.user_id(),
            By::Conversation => Session.conversation_id(),
            By::Sandbox => Session.sandbox_id(),
            By::Operation => operation,
        };
        match take_tokens("requests", &key, cost) {
            Ok(()) => Verdict::Continue,
            Err(milliseconds) => {
                count("limited", 1);
                let seconds = milliseconds.div_ceil(1000);
                let message = format!("too many requests: try again in {seconds} s");
                Rejection::new("rate-limited", message).with_status(429).into()
            }
        }
    }
}

register!(RateLimit);

#[cfg(test)]
mod tests {
    use super::*;
    use postern_sdk_wasm::harness::{Case, FilterStopped};
    use serde_json::json;

    #[test]
    fn requests_pass_while_there_are_tokens() {
        let outcome = Case::get("/orders").config(json!({"by": "user"})).run::<RateLimit>().expect("runs");
        assert_eq!(outcome.verdict, Verdict::Continue);
    }

    #[test]
    fn an_empty_bucket_refuses_says_for_how_long_and_counts() {
        let case = Case::get("/orders").config(json!({"by": "conversation"})).tokens_in(1500);
        let outcome = case.run::<RateLimit>().expect("runs");
        let rejection = outcome.rejection().expect("is refused");
        assert_eq!((rejection.status, rejection.code.as_str()), (429, "rate-limited"));
        assert!(rejection.message.contains("2 s"), "{}", rejection.message);
        assert_eq!(outcome.counters.get("limited"), Some(&1));
    }

    #[test]
    fn an_operation_that_costs_nothing_is_never_limited() {
        let config = json!({"by": "user", "costs": {"get": 0}});
        let outcome = Case::get("/orders").config(config).tokens_in(9).run::<RateLimit>().expect("runs");
        assert_eq!(outcome.verdict, Verdict::Continue);
    }

    #[test]
    fn whom_to_count_must_be_said() {
        let stopped = Case::get("/").config(json!({})).run::<RateLimit>();
        assert!(matches!(stopped, Err(FilterStopped::Config(_))));
    }
}
