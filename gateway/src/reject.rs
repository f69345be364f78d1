// SPDX-License-Identifier: Apache-2.0
//! Every way in which a request ends early, in one type.
//!
//! It decides status, public body, log level and metric label. The tables that every refusal must
//! be in (code, detail, hint) have no catch-all arm. What it says to the caller names the caller's
//! own request only: no address of a backend, no other tenant, no secret.
//!
//! One exception: what hyper cannot read as a request never comes here. It answers by itself, bare
//! 400, 408, 414 or 431 over HTTP/1.1 and a reset or 431 over HTTP/2; nothing is known of the
//! caller then, so there is no record. `listener` counts those of HTTP/1.1 under the codes
//! `request-malformed`, `request-timeout` and `header-too-large`.

use crate::body::BodyFault;
use crate::upstream::address::RefusedAddress;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use postern_common::decision::{PolicyPart, Verdict};
use postern_common::id::{DecisionId, RequestId};
use postern_common::problem::{CONTENT_TYPE as PROBLEM_TYPE, Code, FieldError, Problem};
use postern_common::token::BadToken;
use std::time::Duration;

/// Who reads a refusal, which decides what there is for them to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    /// Sandboxes and clients of an orchestrator.
    Installation,
    /// Callers of a gateway that stands alone: there are only it and the issuer of their tokens.
    Issuer,
}

/// What a bucket or a permit belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    BadTokens,
    Session,
    Tenant,
    Operation,
    Backend,
    Gateway,
}

impl Scope {
    const fn as_str(self) -> &'static str {
        match self {
            Self::BadTokens => "bad-tokens",
            Self::Session => "session",
            Self::Tenant => "tenant",
            Self::Operation => "operation",
            Self::Backend => "backend",
            Self::Gateway => "gateway",
        }
    }
}

/// A bucket that had too little.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limited {
    pub(crate) scope: Scope,
    /// When it is worth trying again; `None` if the cost exceeds what the bucket can hold.
    pub(crate) wait: Option<Duration>,
    pub(crate) quota: u32,
    pub(crate) left: u64,
}

/// A filter's own refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FilterRefusal {
    pub(crate) filter: String,
    /// 400 to 499.
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) message: String,
}

/// Why a request was not forwarded, or its answer not passed on.
#[derive(Debug)]
pub(crate) enum Reject {
    /// The request cannot be read in exactly one way.
    Malformed(String),
    Upgrade,
    TokenMissing,
    TokenUnreadable(&'static str),
    Token(BadToken),
    /// A good signature over more than the session has.
    TokenClaimsMore(&'static str),
    /// A token that was replaced more than a minute ago.
    TokenReplaced,
    SessionEnded,
    SessionExpired,
    WrongPeer,
    SessionUnknown,
    StateStale,
    /// Its record would be lost.
    AuditFull,
    NoConfiguration,
    RateLimited(Limited),
    ConcurrencyLimited(Scope),
    RouteUnknown,
    MethodNotAllowed(String),
    BodyTooLarge {
        limit: u64,
    },
    BodyTimeout,
    BodyBroken,
    ContentType(&'static str),
    ContentEncoding,
    /// Identity in a place where it may not be, or another's.
    Identity {
        pointer: String,
        message: &'static str,
    },
    Schema(Vec<FieldError>),
    /// Denied by policies, of which those that the caller may hear of are named.
    Denied(Vec<PolicyPart>),
    /// A policy could not be evaluated, or the request does not fit the policies' types.
    PolicyError {
        policies: Vec<PolicyPart>,
        message: String,
    },
    FilterRejected(FilterRefusal),
    FilterFailed {
        filter: String,
        cause: String,
    },
    UpstreamAddress(RefusedAddress),
    /// What happened is the operator's to read.
    UpstreamUnreachable(String),
    UpstreamTimeout,
    /// The backend has failed too often; it is asked again after this time.
    CircuitOpen(Duration),
    CredentialMissing,
    Internal(&'static str),
}

impl From<BodyFault> for Reject {
    fn from(fault: BodyFault) -> Self {
        match fault {
            BodyFault::TooLarge { limit } => Self::BodyTooLarge { limit },
            BodyFault::TooSlow => Self::BodyTimeout,
            BodyFault::Broken => Self::BodyBroken,
            BodyFault::SessionEnded => Self::SessionEnded,
            BodyFault::NoRoom(scope) => Self::ConcurrencyLimited(scope),
        }
    }
}

impl Reject {
    /// The stable code, which is also the metric's label.
    pub(crate) const fn code(&self) -> Code {
        match self {
            Self::Malformed(_) | Self::BodyBroken => Code::RequestMalformed,
            Self::Upgrade => Code::UpgradeRefused,
            Self::TokenMissing => Code::TokenMissing,
            Self::TokenUnreadable(_) | Self::Token(BadToken::Malformed) => Code::TokenMalformed,
            Self::Token(BadToken::Forged | BadToken::NotYetValid) | Self::TokenClaimsMore(_) => {
                Code::TokenForged
            }
            Self::Token(BadToken::Expired) | Self::TokenReplaced | Self::SessionExpired => Code::TokenExpired,
            Self::SessionEnded => Code::TokenRevoked,
            Self::WrongPeer => Code::TokenWrongPeer,
            Self::SessionUnknown => Code::SessionUnknown,
            Self::StateStale | Self::CredentialMissing => Code::StateStale,
            Self::AuditFull => Code::AuditUnavailable,
            Self::NoConfiguration | Self::RouteUnknown => Code::RouteUnknown,
            Self::RateLimited(_) => Code::RateLimited,
            Self::ConcurrencyLimited(_) => Code::ConcurrencyLimited,
            Self::MethodNotAllowed(_) => Code::MethodNotAllowed,
            Self::BodyTooLarge { .. } => Code::BodyTooLarge,
            Self::BodyTimeout => Code::RequestTimeout,
            Self::ContentType(_) | Self::ContentEncoding => Code::ContentTypeRefused,
            Self::Identity { .. } => Code::IdentityMismatch,
            Self::Schema(_) => Code::SchemaViolation,
            Self::Denied(_) => Code::PolicyDenied,
            Self::PolicyError { .. } => Code::PolicyError,
            Self::FilterRejected(_) => Code::FilterRejected,
            Self::FilterFailed { .. } => Code::FilterFailed,
            Self::UpstreamAddress(_) => Code::UpstreamRefusedAddress,
            Self::UpstreamUnreachable(_) => Code::UpstreamUnreachable,
            Self::UpstreamTimeout => Code::UpstreamTimeout,
            Self::CircuitOpen(_) => Code::CircuitOpen,
            Self::Internal(_) => Code::Internal,
        }
    }

    /// Whether a rule refused, or something failed.
    pub(crate) const fn verdict(&self) -> Verdict {
        if self.code().status() >= 500 { Verdict::Error } else { Verdict::Deny }
    }

    /// The metric's label beside the code.
    pub(crate) const fn outcome(&self) -> &'static str {
        match self.verdict() {
            Verdict::Allow => "allow",
            Verdict::Deny => "deny",
            Verdict::Error => "error",
        }
    }

    /// What the caller reads.
    fn problem(&self, audience: Audience) -> Problem {
        let (detail, hint) = match audience {
            Audience::Installation => (self.detail(), self.hint()),
            Audience::Issuer => (self.detail_alone(), self.hint_alone()),
        };
        let problem = Problem::new(self.code(), detail);
        let problem = match hint {
            Some(hint) => problem.hint(hint),
            None => problem,
        };
        match self {
            Self::Schema(errors) => problem.errors(errors.clone()),
            Self::Identity { pointer, message } => {
                problem.errors(vec![FieldError { pointer: pointer.clone(), message: (*message).to_owned() }])
            }
            Self::FilterRejected(refusal) => Problem { status: refusal.status, ..problem },
            _ => problem,
        }
    }

    /// Headers that go with the answer.
    fn headers(&self, headers: &mut HeaderMap) {
        match self {
            Self::RateLimited(limited) => limited.headers(headers),
            Self::CircuitOpen(wait) => {
                headers.insert(RETRY_AFTER, words::whole_seconds(*wait).into());
            }
            Self::ConcurrencyLimited(_)
            | Self::SessionUnknown
            | Self::StateStale
            | Self::AuditFull
            | Self::CredentialMissing => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Self::MethodNotAllowed(allow) => {
                headers.extend(HeaderValue::from_str(allow).ok().map(|allow| (ALLOW, allow)));
            }
            _ => {}
        }
        if self.code().status() == 401 {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"postern\""));
        }
        // What is left of a body that was not read, or whose end two servers would see in different
        // places, may not be taken for the next request.
        let is_framed_oddly = matches!(self, Self::Malformed(_) | Self::Upgrade);
        if is_framed_oddly || matches!(self, Self::BodyTooLarge { .. } | Self::BodyTimeout | Self::BodyBroken)
        {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }

    /// The answer.
    pub(crate) fn response(
        &self,
        audience: Audience,
        request: &RequestId,
        decision: &DecisionId,
    ) -> Response<Vec<u8>> {
        let mut problem = self.problem(audience);
        problem.request_id = Some(request.clone());
        problem.decision_id = Some(decision.clone());
        // Serializing a struct of texts and numbers cannot fail; an empty body would still refuse.
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::FORBIDDEN);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_TYPE));
        self.headers(response.headers_mut());
        response
    }

    /// Writes the refusal to the operator's log, once.
    pub(crate) fn log(&self, request: &RequestId, decision: &DecisionId) {
        let code = self.code().as_str();
        match self {
            Self::Token(BadToken::Forged) | Self::TokenClaimsMore(_) | Self::WrongPeer => {
                tracing::warn!(%request, %decision, code, detail = self.detail(), "refused");
            }
            Self::UpstreamAddress(address) => {
                tracing::warn!(%request, %decision, code, %address, "refused");
            }
            Self::UpstreamUnreachable(cause) => {
                tracing::warn!(%request, %decision, code, cause, "the backend failed");
            }
            Self::FilterFailed { filter, cause } => {
                tracing::error!(%request, %decision, code, filter, cause, "a filter failed");
            }
            Self::Internal(cause) => tracing::error!(%request, %decision, code, cause, "internal error"),
            Self::CredentialMissing => {
                tracing::error!(%request, %decision, code, "a backend's credential names a secret that is not here");
            }
            Self::RateLimited(_) | Self::ConcurrencyLimited(_) => {
                tracing::debug!(%request, %decision, code, "refused");
            }
            _ => tracing::info!(%request, %decision, code, "refused"),
        }
    }
}

mod words;
