// SPDX-License-Identifier: Apache-2.0
//! Runs a filter as plain Rust, in `cargo test`: a request in, verdict and changes out.
//!
//! It keeps to the contract but enforces none of the host's bounds, and takes every host function
//! as granted: the filter's tests in the real engine are for that.

pub(crate) mod host;

use crate::{Filter, Mistake, Rejection, Request, Response, Verdict};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A request (and response) that a filter is run on. Built up, then consumed by a run.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Case {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) template: String,
    pub(crate) operation: String,
    pub(crate) backend: String,
    pub(crate) user_id: String,
    pub(crate) conversation_id: String,
    pub(crate) path_parameters: BTreeMap<String, String>,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) status: u16,
    pub(crate) response_headers: Vec<(String, String)>,
    pub(crate) response_body: Vec<u8>,
    pub(crate) claims: serde_json::Map<String, serde_json::Value>,
    pub(crate) config: serde_json::Value,
    pub(crate) schema_mistakes: Vec<Mistake>,
    pub(crate) tokens_in: Option<u64>,
}

/// A change that a filter asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// All headers of a name were replaced.
    SetHeader(String, String),
    /// All headers of a name were removed.
    RemoveHeader(String),
    /// All query parameters of a name were replaced.
    SetQueryParameter(String, String),
    /// All query parameters of a name were removed.
    RemoveQueryParameter(String),
    /// The path was replaced.
    SetPath(String),
    /// The body was replaced.
    SetBody(Vec<u8>),
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The filter's decision.
    pub verdict: Verdict,
    /// The changes that it asked for, in order; without meaning after a rejection.
    pub changes: Vec<Change>,
    /// The lines that it logged.
    pub log: Vec<String>,
    /// What it counted.
    pub counters: BTreeMap<String, u64>,
}

impl Outcome {
    /// The rejection, if it was one.
    #[must_use]
    pub const fn rejection(&self) -> Option<&Rejection> {
        match &self.verdict {
            Verdict::Reject(rejection) => Some(rejection),
            Verdict::Continue => None,
        }
    }
}

/// Why a run came to nothing. In the gateway, the request would be refused (`filter-failed`).
#[derive(Debug)]
pub enum FilterStopped {
    /// The case's config is not what the filter's `Config` takes.
    Config(serde_json::Error),
    /// The filter panicked.
    Panicked,
}

impl std::fmt::Display for FilterStopped {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Config(_) => formatter
                .write_str("the filter does not take this config: compare its `Config` with `Case::config`"),
            Self::Panicked => {
                formatter.write_str("the filter panicked, which in the gateway refuses the request")
            }
        }
    }
}

impl std::error::Error for FilterStopped {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Config(source) => Some(source),
            Self::Panicked => None,
        }
    }
}

/// The call that is under way on this thread.
#[derive(Debug, Default)]
pub(crate) struct Call {
    pub(crate) case: Case,
    pub(crate) changes: Vec<Change>,
    pub(crate) log: Vec<String>,
    pub(crate) counters: BTreeMap<String, u64>,
    pub(crate) index: u64,
    pub(crate) is_last: bool,
    pub(crate) kept: usize,
}

thread_local! {
    static CALL: RefCell<Call> = RefCell::default();
}

pub(crate) fn with<R>(ask: impl FnOnce(&mut Call) -> R) -> R {
    CALL.with_borrow_mut(ask)
}

impl Case {
    /// A request of this method and path, to an operation that is named after the method.
    pub fn new(method: &str, path: &str) -> Self {
        Self {
            method: method.to_ascii_uppercase(),
            operation: method.to_ascii_lowercase(),
            path: path.to_owned(),
            template: path.to_owned(),
            backend: "test-backend".to_owned(),
            user_id: "test-user".to_owned(),
            conversation_id: "test-conversation".to_owned(),
            status: 200,
            config: serde_json::json!({}),
            ..Self::default()
        }
    }

    /// A GET.
    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    /// A POST with a JSON body.
    pub fn post_json(path: &str, body: &serde_json::Value) -> Self {
        Self::new("POST", path).header("content-type", "application/json").body(body.to_string())
    }

    /// The operation's id and the template of its path.
    pub fn operation(mut self, operation: &str, template: &str) -> Self {
        operation.clone_into(&mut self.operation);
        template.clone_into(&mut self.template);
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_ascii_lowercase(), value.to_owned()));
        self
    }

    /// Adds a query parameter.
    pub fn query(mut self, name: &str, value: &str) -> Self {
        self.query.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds a path parameter.
    pub fn path_parameter(mut self, name: &str, value: &str) -> Self {
        self.path_parameters.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Sets who calls: the application's ids of user and conversation.
    pub fn session(mut self, user_id: &str, conversation_id: &str) -> Self {
        user_id.clone_into(&mut self.user_id);
        conversation_id.clone_into(&mut self.conversation_id);
        self
    }

    /// Adds a claim of the session.
    pub fn claim(mut self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        self.claims.insert(name.to_owned(), value.into());
        self
    }

    /// Sets the filter's settings.
    pub fn config(mut self, config: serde_json::Value) -> Self {
        self.config = config;
        self
    }

    /// What the host's JSON Schema check is to answer.
    pub fn schema_mistakes(mut self, mistakes: Vec<Mistake>) -> Self {
        self.schema_mistakes = mistakes;
        self
    }

    /// Makes every token bucket empty, with tokens again in so many milliseconds.
    pub const fn tokens_in(mut self, milliseconds: u64) -> Self {
        self.tokens_in = Some(milliseconds);
        self
    }

    /// The backend's response, for the response phase.
    pub fn response(mut self, status: u16, body: impl Into<Vec<u8>>) -> Self {
        self.status = status;
        self.response_body = body.into();
        self
    }

    /// Adds a header of the response.
    pub fn response_header(mut self, name: &str, value: &str) -> Self {
        self.response_headers.push((name.to_ascii_lowercase(), value.to_owned()));
        self
    }

    /// Runs the request phase of a filter.
    ///
    /// # Errors
    /// [`FilterStopped`] where the gateway would answer `filter-failed`.
    pub fn run<F: Filter>(self) -> Result<Outcome, FilterStopped> {
        self.call(0, true, |filter: F| filter.on_request(&mut Request::of_this_call())).map(|(it, _)| it)
    }

    /// Runs the response phase of a filter.
    ///
    /// # Errors
    /// [`FilterStopped`] where the gateway would answer `filter-failed`.
    pub fn run_response<F: Filter>(self) -> Result<Outcome, FilterStopped> {
        self.call(0, true, |filter: F| filter.on_response(&mut Response::of_this_call())).map(|(it, _)| it)
    }

    /// Runs the response phase for a body that comes in these parts, as the host does for a filter
    /// with `body.response_chunk`: a fresh filter for each part, with what was kept before it.
    ///
    /// Returns what goes on, and what each call came to. A rejection ends it.
    ///
    /// # Errors
    /// [`FilterStopped`] where the gateway would break the answer off.
    pub fn run_parts<F: Filter>(self, parts: &[&[u8]]) -> Result<(Vec<u8>, Vec<Outcome>), FilterStopped> {
        let (mut passed, mut outcomes, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for (index, part) in parts.iter().enumerate() {
            let mut case = self.clone();
            case.response_body = [kept.as_slice(), part].concat();
            let body = case.response_body.clone();
            let is_last = index + 1 == parts.len();
            let phase = |filter: F| filter.on_response(&mut Response::of_this_call());
            let (outcome, length) = case.call(u64::try_from(index).unwrap_or(u64::MAX), is_last, phase)?;
            let (goes_on, stays) = body.split_at(body.len().saturating_sub(length));
            let replaced = outcome.changes.iter().rev().find_map(|change| match change {
                Change::SetBody(body) => Some(body.as_slice()),
                _ => None,
            });
            let is_rejected = outcome.rejection().is_some();
            if !is_rejected {
                passed.extend_from_slice(replaced.unwrap_or(goes_on));
                kept = stays.to_vec();
            }
            outcomes.push(outcome);
            if is_rejected {
                break;
            }
        }
        Ok((passed, outcomes))
    }

    /// One call, and how many bytes of the body it kept back.
    fn call<F: Filter>(
        self,
        index: u64,
        is_last: bool,
        phase: impl FnOnce(F) -> Verdict,
    ) -> Result<(Outcome, usize), FilterStopped> {
        let config = serde_json::from_value(self.config.clone()).map_err(FilterStopped::Config)?;
        with(|call| {
            *call = Call { case: self, index, is_last, ..Call::default() };
        });
        let verdict = catch_unwind(AssertUnwindSafe(|| phase(F::new(config))));
        let call = with(std::mem::take);
        let verdict = verdict.map_err(|_panic| FilterStopped::Panicked)?;
        let outcome = Outcome { verdict, changes: call.changes, log: call.log, counters: call.counters };
        Ok((outcome, call.kept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Claim, Level, NoConfig, Session};

    struct Everything;

    impl Filter for Everything {
        type Config = NoConfig;

        fn new(_: NoConfig) -> Self {
            Self
        }

        fn on_request(&self, request: &mut Request) -> Verdict {
            assert_eq!(request.header("ACCEPT").as_deref(), Some("a, b"));
            assert_eq!(request.query_parameter("page").as_deref(), Some("2"));
            assert_eq!(request.body_part(1, 2), b"od");
            assert_eq!(request.body_part(9, 2), b"");
            assert_eq!(Session.claim("age"), Some(Claim::Json("7".to_owned())));
            request.set_header("x-seen", "yes");
            request.remove_query_parameter("page");
            crate::log(Level::Info, "hello");
            crate::count("seen", 2);
            if crate::take_tokens("calls", "me", 1).is_err() {
                return Rejection::new("slow-down", "too many").with_status(429).into();
            }
            Verdict::Continue
        }

        fn on_response(&self, response: &mut Response) -> Verdict {
            assert_eq!((response.status(), response.body_length()), (201, 4));
            assert_eq!(response.request().path(), "/things");
            response.set_body(b"new");
            Verdict::Continue
        }
    }

    fn case() -> Case {
        Case::new("post", "/things")
            .header("Accept", "a")
            .header("accept", "b")
            .query("page", "2")
            .claim("age", 7)
            .body("body")
    }

    #[test]
    fn a_filter_reads_its_case_and_its_wishes_come_back_in_order() {
        let outcome = case().run::<Everything>().expect("runs");
        assert_eq!(outcome.verdict, Verdict::Continue);
        assert_eq!(
            outcome.changes,
            [Change::SetHeader("x-seen".into(), "yes".into()), Change::RemoveQueryParameter("page".into())]
        );
        assert_eq!(outcome.log, ["hello"]);
        assert_eq!(outcome.counters, BTreeMap::from([("seen".to_owned(), 2)]));
    }

    #[test]
    fn empty_buckets_and_responses_are_part_of_a_case() {
        let outcome = case().tokens_in(500).run::<Everything>().expect("runs");
        assert_eq!(outcome.rejection().map(|it| it.status), Some(429));
        let outcome = case().response(201, "made").run_response::<Everything>();
        assert_eq!(outcome.expect("runs").changes, [Change::SetBody(b"new".to_vec())]);
    }

    #[test]
    fn a_wrong_config_and_a_panic_stop_the_filter_and_nothing_else() {
        let stopped = case().config(serde_json::json!({"x": 1})).run::<Everything>();
        assert!(matches!(stopped, Err(FilterStopped::Config(_))));
        let stopped = Case::get("/").run::<Everything>();
        assert!(matches!(stopped, Err(FilterStopped::Panicked)));
        assert!(case().run::<Everything>().is_ok());
    }
}
