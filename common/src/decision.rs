// SPDX-License-Identifier: Apache-2.0
//! The record of one decision of the gateway (contracts: Decision record).
//!
//! It names what was asked and why it was answered so; it holds no body and no secret.

use crate::id::{
    BackendName, ConversationId, DecisionId, FilterName, OperationId, RequestId, SandboxId, TenantId, UserId,
};
use crate::problem::Code;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Forwarded.
    Allow,
    /// Refused by a rule.
    Deny,
    /// Ended by a failure: ours, a filter's or the backend's.
    Error,
}

/// Whether a policy decides or only watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It decides.
    Enforce,
    /// What it would have decided is recorded.
    Shadow,
}

/// What a policy does where it applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Allows, unless another forbids.
    Permit,
    /// Denies, whatever others say.
    Forbid,
}

/// A policy that had a part in the decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyPart {
    /// Its `@id`.
    pub id: String,
    /// Permit or forbid.
    pub effect: Effect,
    /// Enforced or shadow.
    pub mode: Mode,
    /// Its `@reason`, which callers may see.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Which policies would have decided, had they been enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShadowScope {
    /// The set in force with its policies in shadow enforced too.
    Policies,
    /// The tenant's whole set in shadow, instead of the one in force.
    Set,
}

/// What policies in shadow would have made of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShadowPart {
    /// Which.
    pub scope: ShadowScope,
    /// Allow or deny.
    pub verdict: Verdict,
    /// Those in shadow that matched or could not be evaluated; of a set, those that decided.
    pub policies: Vec<String>,
}

/// A filter that ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterPart {
    /// Its name.
    pub name: FilterName,
    /// The digest of the component that ran.
    pub digest: String,
    /// `continue`, `changed`, `reject` or `failed`; `unread` of one in shadow whose body was not
    /// held for it.
    pub verdict: String,
    /// The filter's own code of a rejection, or the cause of a failure.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub code: Option<String>,
    /// `shadow` if the verdict was only recorded.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mode: Option<Mode>,
    /// `response` if it ran on the answer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub phase: Option<FilterPhase>,
    /// What it took.
    pub microseconds: u64,
}

/// What a filter ran on, where that is not the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FilterPhase {
    /// The backend's answer.
    Response,
}

/// A line that a filter logged, for its author. The tenant's own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterLine {
    /// When.
    pub at: Timestamp,
    /// Whose filter.
    pub tenant: TenantId,
    /// Which.
    pub filter: FilterName,
    /// Whose request.
    pub sandbox_id: SandboxId,
    /// `debug`, `info` or `warn`.
    pub level: Cow<'static, str>,
    /// What it said: one line.
    pub message: String,
}

/// The versions of the configuration that the request was judged by.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// Backends and their documents.
    pub routes: String,
    /// The policy set.
    pub policies: String,
    /// The filters.
    pub filters: String,
}

/// What the backend answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UpstreamPart {
    /// Its status.
    pub status: u16,
    /// Until its response head.
    pub milliseconds: f64,
}

/// One decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecisionRecord {
    /// Its own id, which refusals carry.
    pub id: DecisionId,
    /// When the request came.
    pub at: Timestamp,
    /// The request.
    pub request_id: RequestId,
    /// The W3C trace that it is part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// The session's tenant; absent where no session was found, as are the next three.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantId>,
    /// The session's sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<SandboxId>,
    /// The session's user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    /// The session's conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// The backend that was meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendName>,
    /// The operation that was meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationId>,
    /// The method.
    pub method: String,
    /// The operation's path, never the request's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_template: Option<String>,
    /// How it ended.
    pub verdict: Verdict,
    /// The problem's code, where it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// The policies that decided, and what shadow policies would have.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub policies: Vec<PolicyPart>,
    /// What policies in shadow would have made of it, where some had a say.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub shadow: Vec<ShadowPart>,
    /// The filters that ran.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub filters: Vec<FilterPart>,
    /// The names of the fields that identity was written to.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub overridden: Vec<String>,
    /// What it was judged by.
    pub versions: Versions,
    /// What the backend answered, if it was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<UpstreamPart>,
    /// Microseconds by stage. Who writes the record names stages without an allocation.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub microseconds: BTreeMap<Cow<'static, str>, u64>,
    /// What policies saw of the request, in the policy engine's own JSON and under its size cap;
    /// kept beside the record, never shown as a part of it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub evidence: Option<Box<str>>,
}

impl DecisionRecord {
    /// A record of a request that has just come, of which nothing else is known yet: until somebody
    /// says how it ended, it has failed.
    #[must_use]
    pub fn begin(at: Timestamp, method: impl Into<String>) -> Self {
        Self {
            id: DecisionId::generate(),
            at,
            request_id: RequestId::generate(),
            trace_id: None,
            tenant: None,
            sandbox_id: None,
            user_id: None,
            conversation_id: None,
            backend: None,
            operation: None,
            method: method.into(),
            path_template: None,
            verdict: Verdict::Error,
            code: None,
            policies: Vec::new(),
            shadow: Vec::new(),
            filters: Vec::new(),
            overridden: Vec::new(),
            versions: Versions::default(),
            upstream: None,
            microseconds: BTreeMap::new(),
            evidence: None,
        }
    }
}
