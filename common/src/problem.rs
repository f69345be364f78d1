// SPDX-License-Identifier: Apache-2.0
//! Errors as callers see them: RFC 9457 problem+json with a stable code and a hint.
//!
//! The table in this file is the whole list of codes. Codes may be added, never renamed. What
//! the operator needs to know beyond it belongs in a log line, not in a [`Problem`].

use crate::id::{DecisionId, RequestId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The media type of a [`Problem`].
pub const CONTENT_TYPE: &str = "application/problem+json";

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident $code:literal $status:literal $title:literal;)*) => {
        /// What went wrong, as a stable name that programs may match on.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code {
            $($(#[$doc])* $name,)*
        }

        impl Code {
            /// Every code, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The stable kebab-case name.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// The HTTP status that goes with it.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// One line for people, the same for every occurrence.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }
        }
    };
}

codes! {
    /// A path, encoding or body that cannot be read in exactly one way.
    RequestMalformed "request-malformed" 400 "The request cannot be read in exactly one way";
    /// CONNECT, h2c or an upgrade that the operation does not declare.
    UpgradeRefused "upgrade-refused" 400 "This upgrade is not allowed here";
    /// No session token was sent.
    TokenMissing "token-missing" 401 "A session token is required";
    /// The token cannot be read.
    TokenMalformed "token-malformed" 401 "The session token cannot be read";
    /// The token was not signed by us, or claims more than its session.
    TokenForged "token-forged" 401 "The session token is not genuine";
    /// The token was good once.
    TokenExpired "token-expired" 401 "The session token has expired";
    /// The token's session has ended.
    TokenRevoked "token-revoked" 401 "The session has ended";
    /// No API key was sent.
    KeyMissing "key-missing" 401 "An API key is required";
    /// The API key is unknown or was deleted.
    KeyInvalid "key-invalid" 401 "The API key is not valid";
    /// The token belongs to another sandbox or address.
    TokenWrongPeer "token-wrong-peer" 403 "The session token was sent from elsewhere";
    /// The request names another identity than its session's.
    IdentityMismatch "identity-mismatch" 403 "The request names another identity";
    /// A policy forbids it, or none permits it.
    PolicyDenied "policy-denied" 403 "A policy does not allow this";
    /// A policy could not be evaluated, which counts as a denial.
    PolicyError "policy-error" 403 "A policy could not be evaluated";
    /// A filter refused it.
    FilterRejected "filter-rejected" 403 "A filter refused this request";
    /// The backend's address is not one that requests may go to.
    UpstreamRefusedAddress "upstream-refused-address" 403 "The backend's address is not allowed";
    /// The caller lacks the right.
    Forbidden "forbidden" 403 "This is not allowed";
    /// No operation of the tenant's backends has this path.
    RouteUnknown "route-unknown" 404 "No operation has this path";
    /// The thing does not exist, or not for this caller.
    NotFound "not-found" 404 "Not found";
    /// The path exists, with other methods.
    MethodNotAllowed "method-not-allowed" 405 "The path has no such method";
    /// The request did not arrive in time.
    RequestTimeout "request-timeout" 408 "The request took too long to arrive";
    /// The conversation belongs to another user of the same tenant.
    ConversationOfAnotherUser "conversation-of-another-user" 409 "This conversation belongs to another user";
    /// The conversation's sandbox was made with other settings.
    SandboxDiffers "sandbox-differs" 409 "The conversation's sandbox was made differently";
    /// A request with the same idempotency key is still under way.
    IdempotencyConflict "idempotency-conflict" 409 "A request with this idempotency key is under way";
    /// A watched folder (or the API) owns this tenant's configuration.
    OwnedElsewhere "owned-elsewhere" 409 "This configuration is owned elsewhere";
    /// The thing is in a state in which this cannot be done.
    StateConflict "state-conflict" 409 "Not possible in the present state";
    /// `If-Match` or `If-None-Match` did not hold.
    PreconditionFailed "precondition-failed" 412 "The precondition did not hold";
    /// The body is over the bound.
    BodyTooLarge "body-too-large" 413 "The body is too large";
    /// The body's media type or encoding is not accepted here.
    ContentTypeRefused "content-type-refused" 415 "This content type is not accepted here";
    /// The file ends before the range begins.
    RangeNotSatisfiable "range-not-satisfiable" 416 "There is nothing in this range";
    /// The request does not match the operation's schema.
    SchemaViolation "schema-violation" 422 "The request does not match the schema";
    /// The same idempotency key came with another request.
    IdempotencyKeyReused "idempotency-key-reused" 422 "The idempotency key was used for another request";
    /// The API call's input is not valid.
    InvalidInput "invalid-input" 422 "The input is not valid";
    /// A token bucket is empty.
    RateLimited "rate-limited" 429 "Too many requests";
    /// Too many requests at once.
    ConcurrencyLimited "concurrency-limited" 429 "Too many requests at once";
    /// A quota of the tenant is used up.
    QuotaExceeded "quota-exceeded" 429 "A quota is used up";
    /// The request's headers are over the bound.
    HeaderTooLarge "header-too-large" 431 "The headers are too large";
    /// A filter trapped, ran too long or took too much.
    FilterFailed "filter-failed" 500 "A filter failed";
    /// Our own mistake.
    Internal "internal" 500 "Internal error";
    /// The backend could not be reached or broke off.
    UpstreamUnreachable "upstream-unreachable" 502 "The backend cannot be reached";
    /// A good token of a session that has not been heard of yet.
    SessionUnknown "session-unknown" 503 "The session is not known here yet";
    /// The gateway has not heard from its orchestrator for too long.
    StateStale "state-stale" 503 "The gateway's state is too old to serve from";
    /// Decisions cannot be recorded, and the operator wants no request without its record.
    AuditUnavailable "audit-unavailable" 503 "Decisions cannot be recorded";
    /// The backend failed too often lately.
    CircuitOpen "circuit-open" 503 "The backend is failing";
    /// The server is ending and takes no new work.
    ShuttingDown "shutting-down" 503 "The server is shutting down";
    /// Sandboxes cannot be made at present.
    RuntimeUnavailable "runtime-unavailable" 503 "Sandboxes cannot be made at present";
    /// The isolation that was asked for does not work on this machine.
    IsolationUnavailable "isolation-unavailable" 503 "This isolation is not available here";
    /// The store of users' files does not do what it is asked.
    StorageUnavailable "storage-unavailable" 503 "Users' files cannot be reached at present";
    /// The network of sandboxes is not enforced here.
    NetworkUnenforced "network-unenforced" 503 "The network of sandboxes is not enforced";
    /// The backend did not answer in time.
    UpstreamTimeout "upstream-timeout" 504 "The backend did not answer in time";
}

impl fmt::Display for Code {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = String::deserialize(from)?;
        let found = Self::ALL.iter().find(|code| code.as_str() == name);
        found.copied().ok_or_else(|| serde::de::Error::custom(format!("unknown problem code `{name}`")))
    }
}

/// One mistake in the caller's input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldError {
    /// Where: a JSON pointer (RFC 6901) into the input, such as `/body/amount`.
    pub pointer: String,
    /// What is wrong there, and what would be right.
    pub message: String,
}

/// The body of an error answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `/problems/<code>`: a page that exists.
    #[serde(rename = "type")]
    pub type_: String,
    /// The code's own title.
    pub title: String,
    /// The HTTP status; a filter may choose its own 4xx.
    pub status: u16,
    /// The stable code.
    pub code: Code,
    /// What happened to what.
    pub detail: String,
    /// What the reader can do next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The request that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// The decision record, where a policy, schema, limit or filter refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision_id: Option<DecisionId>,
    /// Each mistake in the input, where the input was at fault.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub errors: Vec<FieldError>,
}

impl Problem {
    /// A problem of this code; `detail` says what happened to what, without secrets.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            type_: format!("/problems/{code}"),
            title: code.title().to_owned(),
            status: code.status(),
            code,
            detail: detail.into(),
            hint: None,
            request_id: None,
            decision_id: None,
            errors: Vec::new(),
        }
    }

    /// Says what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Lists the mistakes in the input.
    #[must_use]
    pub fn errors(mut self, errors: Vec<FieldError>) -> Self {
        self.errors = errors;
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({}): {}", self.title, self.code, self.detail)?;
        for error in &self.errors {
            write!(formatter, "\n  {}: {}", error.pointer, error.message)?;
        }
        self.hint.iter().try_for_each(|hint| write!(formatter, "\n  hint: {hint}"))
    }
}

impl std::error::Error for Problem {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn codes_are_distinct_kebab_case_and_carry_an_error_status() {
        let names: BTreeSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        for code in Code::ALL {
            assert!(code.as_str().bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{code}");
            assert!((400..600).contains(&code.status()), "{code}");
        }
    }

    #[test]
    fn the_wire_form_leaves_out_what_is_empty() {
        let problem = Problem::new(Code::PolicyDenied, "`createRefund` on `support-desk` was refused");
        insta::assert_json_snapshot!(problem, @r#"
        {
          "type": "/problems/policy-denied",
          "title": "A policy does not allow this",
          "status": 403,
          "code": "policy-denied",
          "detail": "`createRefund` on `support-desk` was refused"
        }
        "#);
    }

    #[test]
    fn a_problem_survives_the_wire() {
        let mut problem = Problem::new(Code::SchemaViolation, "1 mistake").hint("see /openapi.json");
        problem.errors.push(FieldError { pointer: "/body/amount".into(), message: "is no number".into() });
        problem.decision_id = Some(DecisionId::generate());
        let text = serde_json::to_string(&problem).expect("serializes");
        assert_eq!(serde_json::from_str::<Problem>(&text).expect("parses"), problem);
    }
}
