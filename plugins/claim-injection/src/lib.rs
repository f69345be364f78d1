// SPDX-License-Identifier: Apache-2.0
//! First-party filter: tells the backend what the application says of the user, as headers.
//!
//! Plan, locale, team: claims that are not identity. Identity is the gateway's own to write, and
//! no filter can change it. A header that the sandbox sent under a configured name is always
//! replaced or removed, so a backend can trust what it reads there.

use postern_sdk_wasm::{Claim, Filter, Rejection, Request, Session, Verdict, register};
use std::collections::BTreeMap;

/// Which claims become which headers.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Header name to claim name.
    headers: BTreeMap<String, String>,
    /// Refuse requests of sessions that lack one of the claims, instead of leaving it out.
    #[serde(default)]
    required: bool,
}

/// The filter.
#[derive(Debug)]
pub struct ClaimInjection {
    config: Config,
}

impl Filter for ClaimInjection {
    type Config = Config;

    fn new(config: Config) -> Self {
        Self { config }
    }

    fn on_request(&self, request: &mut Request) -> Verdict {
        for (header, claim) in &self.config.headers {
            match Session.claim(claim) {
                Some(Claim::Text(text)) => request.set_header(header, &text),
                Some(Claim::Json(json)) => request.set_header(header, &json),
                None if self.config.required => {
                    return Rejection::new(
                        "claim-missing",
                        "the session lacks a claim that this backend needs: create the sandbox with it",
                    )
                    .into();
                }
                None => request.remove_header(header),
            }
        }
        Verdict::Continue
    }
}

register!(ClaimInjection);

#[cfg(test)]
mod tests {
    use super::*;
    use postern_sdk_wasm::harness::{Case, Change, FilterStopped};
    use serde_json::json;

    fn case() -> Case {
        Case::get("/orders").config(json!({"headers": {"x-plan": "plan"}}))
    }

    #[test]
    fn a_claim_becomes_its_header_whatever_the_sandbox_sent() {
        let outcome = case()
            .header("x-plan", "enterprise")
            .claim("plan", "free")
            .run::<ClaimInjection>()
            .expect("runs");
        assert_eq!(outcome.changes, [Change::SetHeader("x-plan".into(), "free".into())]);
    }

    #[test]
    fn a_claim_that_is_no_string_is_written_as_json() {
        let outcome = case().claim("plan", json!({"tier": 2})).run::<ClaimInjection>();
        assert_eq!(
            outcome.expect("runs").changes,
            [Change::SetHeader("x-plan".into(), r#"{"tier":2}"#.into())]
        );
    }

    #[test]
    fn a_header_whose_claim_is_missing_is_removed() {
        let outcome = case().header("x-plan", "enterprise").run::<ClaimInjection>();
        assert_eq!(outcome.expect("runs").changes, [Change::RemoveHeader("x-plan".into())]);
    }

    #[test]
    fn a_missing_claim_refuses_where_it_is_required() {
        let config = json!({"headers": {"x-plan": "plan"}, "required": true});
        let outcome = Case::get("/").config(config).run::<ClaimInjection>();
        let outcome = outcome.expect("runs");
        let rejection = outcome.rejection().expect("refused");
        assert_eq!((rejection.status, rejection.code.as_str()), (403, "claim-missing"));
    }

    #[test]
    fn an_unknown_setting_is_refused() {
        let stopped = case().config(json!({"header": {}})).run::<ClaimInjection>();
        assert!(matches!(stopped, Err(FilterStopped::Config(_))));
    }
}
