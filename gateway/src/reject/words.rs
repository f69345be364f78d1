// SPDX-License-Identifier: Apache-2.0
//! What the caller reads: detail and hint of every refusal, and the headers of a limit.

use super::{Limited, Reject, Scope};
use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderName, HeaderValue};
use postern_common::decision::{Effect, Mode, PolicyPart};
use postern_common::token::BadToken;
use std::time::Duration;

/// A wait as `Retry-After` tells it: rounded up, so that whoever keeps to it is not too early.
pub(super) fn whole_seconds(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u64::MAX).max(1)
}

impl Limited {
    /// `Retry-After` (RFC 9110 §10.2.3) in whole seconds, rounded up, and the `RateLimit` fields of
    /// the IETF's draft-ietf-httpapi-ratelimit-headers.
    pub(super) fn headers(self, headers: &mut HeaderMap) {
        let seconds = self.wait.map_or(0, whole_seconds);
        if self.wait.is_some() {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        let name = self.scope.as_str();
        let fields = [
            ("ratelimit", format!("\"{name}\";r={};t={seconds}", self.left)),
            ("ratelimit-policy", format!("\"{name}\";q={}", self.quota)),
        ];
        for (field, value) in fields {
            let value = HeaderValue::from_str(&value).ok();
            headers.extend(value.map(|value| (HeaderName::from_static(field), value)));
        }
    }
}

impl Reject {
    /// What happened to what.
    pub(super) fn detail(&self) -> String {
        match self {
            Self::Malformed(what) => what.clone(),
            Self::Upgrade => {
                "of CONNECT and upgrades only a WebSocket is served, where the operation takes it".into()
            }
            Self::TokenMissing => "the request has no `Authorization: Bearer` header".into(),
            Self::TokenUnreadable(what) => (*what).into(),
            Self::Token(bad) => bad.to_string(),
            Self::TokenClaimsMore(what) => format!("the token's {what} is not its session's"),
            Self::TokenReplaced => "the token was replaced by a newer one".into(),
            Self::SessionEnded => "the session has ended".into(),
            Self::SessionExpired => "the session's time is over".into(),
            Self::WrongPeer => "the token belongs to another sandbox or address".into(),
            Self::SessionUnknown => "the session has not been announced to this gateway".into(),
            Self::StateStale => "the gateway has not heard from its orchestrator for too long".into(),
            Self::AuditFull => "decisions can no longer be recorded here".into(),
            Self::NoConfiguration => "the tenant has no backends".into(),
            Self::RateLimited(limited) => limited.detail(),
            Self::ConcurrencyLimited(scope) => {
                format!("too many requests of this {} are in flight", scope.as_str())
            }
            Self::RouteUnknown => "no backend and operation has this path".into(),
            Self::MethodNotAllowed(allow) => format!("the path takes {allow}"),
            Self::BodyTooLarge { limit } => format!("the body is longer than {limit} bytes"),
            Self::BodyTimeout => "the body did not arrive in time".into(),
            Self::BodyBroken => "the body ended early or is not framed correctly".into(),
            Self::ContentType(what) => (*what).into(),
            Self::ContentEncoding => "a body with Content-Encoding cannot be judged".into(),
            Self::Identity { pointer, message } => format!("`{pointer}`: {message}"),
            Self::Schema(errors) => match errors.as_slice() {
                [one] => format!("`{}`: {}", one.pointer, one.message),
                many => format!("{} places do not match the operation's schema", many.len()),
            },
            Self::Denied(policies) => denied(policies),
            Self::PolicyError { policies, message } if policies.is_empty() => message.clone(),
            Self::PolicyError { policies, message } => {
                let ids: Vec<_> = policies.iter().map(|policy| policy.id.as_str()).collect();
                format!("policy `{}`: {message}", ids.join("`, `"))
            }
            Self::FilterRejected(refusal) => {
                format!("filter `{}` refused it ({}): {}", refusal.filter, refusal.code, refusal.message)
            }
            Self::FilterFailed { filter, .. } => {
                format!("filter `{filter}` failed, so the request was refused")
            }
            Self::UpstreamAddress(_) => "the backend is at an address that requests may not go to".into(),
            Self::UpstreamUnreachable(_) => "no answer came from the backend".into(),
            Self::UpstreamTimeout => "the backend did not begin to answer in time".into(),
            Self::CircuitOpen(_) => {
                "the backend has failed too often, so it is left alone for a while".into()
            }
            Self::CredentialMissing => "the backend's credential is not available here".into(),
            Self::Internal(_) => "the gateway made a mistake".into(),
        }
    }

    /// What to do next, where there is something.
    pub(super) const fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Malformed(_) => "send one plain path, unique headers and unique JSON keys",
            Self::Upgrade => "send an ordinary request, or name the operation in `websockets` of the backend",
            Self::TokenMissing | Self::TokenUnreadable(_) | Self::Token(BadToken::Malformed) => {
                "inside a sandbox call GATEWAY_URL, which attaches the session's token"
            }
            Self::Token(BadToken::Forged) | Self::TokenClaimsMore(_) => {
                "use the token that POST /sandbox gave, unchanged"
            }
            Self::Token(BadToken::NotYetValid) => "check the clocks of orchestrator and gateway",
            Self::Token(BadToken::Expired) | Self::TokenReplaced => {
                "use the newest token: POST /tokens/{sandbox}/refresh gives one"
            }
            Self::SessionEnded | Self::SessionExpired => "create a sandbox: POST /sandbox",
            Self::WrongPeer => "send it from the sandbox that it was made for",
            Self::SessionUnknown | Self::StateStale | Self::CredentialMissing => "try again in a second",
            Self::AuditFull => "try again; if it stays, see why the orchestrator keeps no decisions",
            Self::NoConfiguration => "put a backend: PUT /backends/{name}",
            Self::RateLimited(limited) if limited.wait.is_none() => {
                "its cost is more than the bucket holds: raise the burst"
            }
            Self::RateLimited(_) | Self::ConcurrencyLimited(_) => {
                "wait as Retry-After says, or send less at once"
            }
            Self::RouteUnknown => "use /<backend>/<path> with a path of the backend's OpenAPI document",
            Self::MethodNotAllowed(_) => "use one of the methods in Allow",
            Self::BodyTooLarge { .. } => "send less, or raise `limits.body` of the backend",
            Self::BodyTimeout => "send the body without pauses",
            Self::BodyBroken => "send the whole body as Content-Length or chunked framing says",
            Self::ContentType(_) => "use a content type that the operation declares",
            Self::ContentEncoding => "send the body uncompressed",
            Self::Identity { .. } => "leave it out: the gateway writes the session's identity itself",
            Self::Schema(_) => "correct the places in `errors`",
            Self::Denied(_) => "`postern policy explain` with the decision id shows what decided",
            Self::PolicyError { .. } => "`postern policy explain` with the decision id shows the error",
            Self::FilterFailed { .. } => "the tenant's operator finds the cause in the gateway's log",
            Self::UpstreamAddress(_) => {
                "ask the operator about gateway.upstreams.allow (POSTERN_UPSTREAMS_ALLOW)"
            }
            Self::CircuitOpen(_) => {
                "try again after the time in `Retry-After`; if it stays, look at the backend"
            }
            Self::UpstreamUnreachable(_) | Self::UpstreamTimeout => {
                "try again; if it stays, look at the backend"
            }
            Self::FilterRejected(_) | Self::Internal(_) => return None,
        })
    }
}

/// The same for callers of a gateway that stands alone, where it is not the same.
impl Reject {
    pub(super) fn detail_alone(&self) -> String {
        match self {
            Self::Token(BadToken::Malformed) => {
                "the token is no JWT with the claims that are needed here".into()
            }
            Self::Token(BadToken::Forged) => "the token is not one of this gateway's issuer".into(),
            Self::SessionEnded => "the operator no longer lets this token, user or conversation in".into(),
            Self::SessionUnknown => "too many sessions are known here".into(),
            Self::StateStale => "the keys of the tokens' issuer are not known here".into(),
            _ => self.detail(),
        }
    }

    pub(super) const fn hint_alone(&self) -> Option<&'static str> {
        Some(match self {
            Self::TokenMissing | Self::TokenUnreadable(_) => {
                "send a token of this gateway's issuer: `Authorization: Bearer TOKEN`"
            }
            Self::Token(BadToken::Malformed) => {
                "it needs `exp` and the claims that name user and conversation (`sub` and \
                 `conversation_id` unless the operator chose others)"
            }
            Self::Token(BadToken::Forged) | Self::TokenClaimsMore(_) => {
                "check its `iss`, `aud`, algorithm and signature"
            }
            Self::Token(BadToken::NotYetValid) => "check the clocks of issuer and gateway",
            Self::Token(BadToken::Expired) | Self::TokenReplaced | Self::SessionExpired => {
                "get a new token of the issuer"
            }
            Self::SessionEnded => "ask the operator, who keeps the list of those refused",
            Self::AuditFull => "try again; if it stays, the operator finds the cause in the gateway's log",
            Self::NoConfiguration => "the operator puts backends into the gateway's folder",
            Self::Denied(_) | Self::PolicyError { .. } => {
                "the operator finds the decision in the access log by its id"
            }
            _ => return self.hint(),
        })
    }
}

impl Limited {
    fn detail(self) -> String {
        match self.scope {
            Scope::BadTokens => "too many bad tokens came from this peer".into(),
            Scope::Session | Scope::Tenant | Scope::Operation | Scope::Backend | Scope::Gateway => {
                format!("the rate of this {} is used up", self.scope.as_str())
            }
        }
    }
}

/// Names the forbids that decided, with their reasons; without any, nothing permitted it.
fn denied(policies: &[PolicyPart]) -> String {
    let is_deciding = |part: &&PolicyPart| part.effect == Effect::Forbid && part.mode == Mode::Enforce;
    let named: Vec<String> = policies
        .iter()
        .filter(is_deciding)
        .map(|part| match &part.reason {
            Some(reason) => format!("policy `{}`: {reason}", part.id),
            None => format!("policy `{}` forbids it", part.id),
        })
        .collect();
    if named.is_empty() { "no policy permits it".into() } else { named.join("; ") }
}
