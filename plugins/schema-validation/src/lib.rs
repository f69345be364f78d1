// SPDX-License-Identifier: Apache-2.0
//! First-party filter: refuses request bodies that do not fit a JSON Schema of its manifest.
//!
//! The host checks; the body does not cross into the filter. A refusal names the places that are
//! wrong and what is wrong there, never what stood there.

use postern_sdk_wasm::{Filter, Rejection, Request, Verdict, check_json, register};
use std::collections::BTreeMap;

/// Places that a refusal names; the rest is for the next try.
const MOST_PLACES: usize = 5;
/// The longest name of a place: property names are the caller's.
const MOST_CHARS: usize = 80;

/// Which operation needs which schema.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Operation to schema of the manifest.
    schemas: BTreeMap<String, String>,
    /// The schema of operations that are not named; they pass if there is none.
    otherwise: Option<String>,
}

/// The filter.
#[derive(Debug)]
pub struct SchemaValidation {
    config: Config,
}

impl Filter for SchemaValidation {
    type Config = Config;

    fn new(config: Config) -> Self {
        Self { config }
    }

    fn on_request(&self, request: &mut Request) -> Verdict {
        let named = self.config.schemas.get(&request.operation());
        let Some(schema) = named.or(self.config.otherwise.as_ref()) else {
            return Verdict::Continue;
        };
        let mistakes = check_json(schema);
        if mistakes.is_empty() {
            return Verdict::Continue;
        }
        let places: Vec<String> = mistakes.iter().take(MOST_PLACES).map(|it| place(&it.pointer)).collect();
        let more = mistakes.len().saturating_sub(MOST_PLACES);
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        let message = format!("the body does not fit schema `{schema}` at {}{more}", places.join(", "));
        Rejection::new("schema-violation", message).with_status(422).into()
    }
}

/// A JSON pointer as one bounded word.
fn place(pointer: &str) -> String {
    if pointer.is_empty() {
        return "its top".to_owned();
    }
    let shown = |character: char| if character.is_control() { '?' } else { character };
    pointer.chars().map(shown).take(MOST_CHARS).collect()
}

register!(SchemaValidation);

#[cfg(test)]
mod tests {
    use super::*;
    use postern_sdk_wasm::Mistake;
    use postern_sdk_wasm::harness::{Case, Outcome};
    use serde_json::json;

    fn run(operation: &str, pointers: &[&str]) -> Outcome {
        let mistake =
            |pointer: &&str| Mistake { pointer: (*pointer).to_owned(), message: "4111 is wrong".to_owned() };
        Case::post_json("/refunds", &json!({"amount": 0}))
            .operation(operation, "/refunds")
            .config(json!({"schemas": {"createRefund": "refund"}}))
            .schema_mistakes(pointers.iter().map(mistake).collect())
            .run::<SchemaValidation>()
            .expect("runs")
    }

    #[test]
    fn a_body_that_does_not_fit_is_refused_with_its_places_and_without_its_values() {
        let outcome = run("createRefund", &["/amount", ""]);
        let rejection = outcome.rejection().expect("is refused");
        assert_eq!((rejection.status, rejection.code.as_str()), (422, "schema-violation"));
        assert_eq!(rejection.message, "the body does not fit schema `refund` at /amount, its top");
    }

    #[test]
    fn a_refusal_stays_one_bounded_line() {
        let long = format!("/{}\n", "x".repeat(5000));
        let outcome = run("createRefund", &[long.as_str(); 20]);
        let message = &outcome.rejection().expect("is refused").message;
        assert!(message.len() < 600 && !message.contains('\n'), "{message}");
        assert!(message.ends_with("and 15 more"), "{message}");
    }

    #[test]
    fn bodies_that_fit_and_operations_without_a_schema_pass() {
        assert!(run("createRefund", &[]).rejection().is_none());
        assert!(run("getOrder", &["/amount"]).rejection().is_none());
    }
}
