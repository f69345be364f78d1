// SPDX-License-Identifier: Apache-2.0
//! A tenant's configuration folder: its shape, and reading it whole.
//!
//! The types are the files of contracts.md ("A tenant's configuration is one folder"), the
//! bodies of the API's PUT calls, and the source of the JSON Schema that editors use. Reading
//! reports every mistake with its file and line, not the first. What a file *means* (does the
//! document parse, do the policies type-check) is for the rooms that use it.

mod read;
mod retention;
#[cfg(feature = "watch")]
pub mod watch;
#[cfg(feature = "watch")]
pub mod watched;

pub use retention::{FileRetention, OnRetired};

pub use read::{FolderMistakes, Mistake, read, read_for_policies};

use crate::id::{BackendName, FilterName, OperationId, PolicyName, SecretName, TemplateName};
use crate::session::{Grant, Isolation};
use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use url::Url;

/// All that one folder holds. What is absent is absent: there are no defaults at this level.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantFiles {
    /// `backends/NAME/`.
    #[serde(default)]
    pub backends: BTreeMap<BackendName, BackendFiles>,
    /// `policies/*.cedar`; `None` if there is no such folder, which leaves the baseline's permit.
    #[serde(default)]
    pub policies: Option<BTreeMap<PolicyName, String>>,
    /// `policies/shadow/*.cedar`: a whole set that only watches; empty if there is none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shadow_policies: BTreeMap<PolicyName, String>,
    /// `policies/tests/*.toml`, as text.
    #[serde(default)]
    pub policy_tests: BTreeMap<PolicyName, String>,
    /// `filters/NAME/`.
    #[serde(default)]
    pub filters: BTreeMap<FilterName, FilterFiles>,
    /// `templates/NAME.toml`.
    #[serde(default)]
    pub templates: BTreeMap<TemplateName, TemplateFile>,
    /// `limits.toml`.
    #[serde(default)]
    pub limits: LimitsFile,
    /// `denied.toml`, of a gateway that stands alone.
    #[serde(default, skip_serializing_if = "DeniedFile::is_empty")]
    pub denied: DeniedFile,
}

/// One backend: its settings and its OpenAPI document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendFiles {
    /// `backend.toml`.
    pub backend: BackendFile,
    /// The file that `openapi` names, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
}

/// One filter: its manifest and its component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilterFiles {
    /// `filter.toml`, as text: its meaning is the filter engine's.
    pub manifest: String,
    /// The WebAssembly component; base64 in JSON.
    #[serde(with = "as_base64")]
    pub component: Vec<u8>,
}

/// `backend.toml`: where a backend is and how requests to it are treated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BackendFile {
    /// The backend's base URL, such as `https://desk.internal:8443/api`.
    pub url: Url,
    /// The OpenAPI document's file name, beside this file. Without one, any path is allowed, in
    /// the groups `read` and `write`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub openapi: Option<String>,
    /// What the backend speaks.
    #[serde(default, skip_serializing_if = "UpstreamProtocol::is_auto")]
    pub protocol: UpstreamProtocol,
    /// Operations that may be asked for a WebSocket; each is a `get`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub websockets: Vec<OperationId>,
    /// Which names carry the caller's identity.
    #[serde(default)]
    pub identity: IdentityFields,
    /// What to do with query parameters that the document does not declare.
    #[serde(default)]
    pub additional_query: Additional,
    /// What to do with headers that the document does not declare and that are not HTTP's own (such
    /// as `Accept` and `If-Match`): passed on if this is left out. Identity is another matter.
    #[serde(default = "pass")]
    pub additional_headers: Additional,
    /// The secret that authenticates us to the backend, attached after the last filter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<Credential>,
    /// The filters of this backend, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<FilterAttachment>,
    /// Limits of this backend.
    #[serde(default)]
    pub limits: BackendLimits,
    /// Limits of single operations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub operations: BTreeMap<OperationId, OperationLimits>,
}

/// The protocol of a backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamProtocol {
    /// Over TLS what both prefer (ALPN), else HTTP/1.1.
    #[default]
    Auto,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only; without TLS by prior knowledge.
    Http2,
}

impl UpstreamProtocol {
    const fn is_auto(&self) -> bool {
        matches!(self, Self::Auto)
    }
}

/// Which names carry identity, in headers, query, path, JSON, form and multipart fields alike.
///
/// Names are compared without case, `-` and `_`. Where the document declares such a name, the
/// session's own value is written; anywhere else the name is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct IdentityFields {
    /// Names that mean the session's user.
    pub user: Vec<String>,
    /// Names that mean the session's conversation.
    pub conversation: Vec<String>,
    /// Names that mean the sandbox.
    pub sandbox: Vec<String>,
    /// Names that mean the tenant.
    pub tenant: Vec<String>,
    /// What to do with a path parameter that names somebody else.
    pub path: PathIdentity,
}

impl Default for IdentityFields {
    fn default() -> Self {
        Self {
            user: vec!["user_id".to_owned(), "X-User-Id".to_owned()],
            conversation: Vec::new(),
            sandbox: Vec::new(),
            tenant: Vec::new(),
            path: PathIdentity::Refuse,
        }
    }
}

/// What to do with a path parameter that names another identity than the session's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PathIdentity {
    /// Refuse the request (`identity-mismatch`).
    #[default]
    Refuse,
    /// Write the session's own value.
    Rewrite,
}

/// What to do with something that the document does not declare.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Additional {
    /// Refuse the request.
    #[default]
    Refuse,
    /// Leave it out.
    Drop,
    /// Forward it.
    Pass,
}

fn pass() -> Additional {
    Additional::Pass
}

/// A backend's credential: the name of a secret, or how to attach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Credential {
    /// As `Authorization: Bearer`.
    Bearer(SecretName),
    /// In another way.
    Attached(AttachedCredential),
    /// No secret, but a token of ours for each request.
    Assertion(AssertionCredential),
}

impl Credential {
    /// The secret that it names, if it needs one.
    #[must_use]
    pub const fn secret(&self) -> Option<&SecretName> {
        match self {
            Self::Bearer(secret) => Some(secret),
            Self::Attached(attached) => Some(&attached.secret),
            Self::Assertion(_) => None,
        }
    }
}

/// How a secret is attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachedCredential {
    /// The secret's name.
    pub secret: SecretName,
    /// The header that takes it as it is; without one, `Authorization`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// The scheme in front of it in `Authorization`: `bearer` or `basic` (of `user:password`).
    #[serde(default)]
    pub scheme: CredentialScheme,
}

/// A token of the gateway's own, good for a minute, that names session, method and path; backends
/// verify it with the key set of any gateway (`/.well-known/jwks.json` of its admin listener).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AssertionCredential {
    /// What the backend calls itself: the `aud` of the token is `TENANT/` and this.
    pub assertion: String,
    /// The header that takes it; without one, `Authorization`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
}

/// The scheme of a credential in `Authorization`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CredentialScheme {
    /// `Bearer SECRET`.
    #[default]
    Bearer,
    /// `Basic` of the base64 of the secret, which is `user:password`.
    Basic,
}

/// A filter's place in the chain of a backend: its name, or more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum FilterAttachment {
    /// For every operation, with the filter's default settings.
    Name(FilterName),
    /// For some operations, or with settings.
    Configured(ConfiguredFilter),
}

impl FilterAttachment {
    /// The filter's name.
    #[must_use]
    pub const fn name(&self) -> &FilterName {
        match self {
            Self::Name(name) => name,
            Self::Configured(configured) => &configured.name,
        }
    }
}

/// A filter with settings of this attachment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfiguredFilter {
    /// The filter's name.
    pub name: FilterName,
    /// The operations or groups that it applies to; all of them if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub operations: Vec<OperationId>,
    /// Settings that the filter reads.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub config: serde_json::Map<String, serde_json::Value>,
    /// `shadow`: what it would do is recorded and not done.
    #[serde(default, skip_serializing_if = "FilterMode::is_enforce")]
    pub mode: FilterMode,
    /// What becomes of a request that the filter fails on.
    #[serde(default, skip_serializing_if = "OnFailure::is_closed")]
    pub on_failure: OnFailure,
}

/// Whether a filter decides or only watches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FilterMode {
    /// It decides.
    #[default]
    Enforce,
    /// It runs, its verdict is recorded, and the request goes on as if it were not there.
    Shadow,
}

impl FilterMode {
    const fn is_enforce(&self) -> bool {
        matches!(self, Self::Enforce)
    }
}

/// What becomes of a request that a filter fails on: it trapped, or went beyond a bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// It is refused.
    #[default]
    Closed,
    /// It goes on as if the filter were not there.
    Open,
}

impl OnFailure {
    const fn is_closed(&self) -> bool {
        matches!(self, Self::Closed)
    }
}

/// Limits of one backend.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BackendLimits {
    /// The longest request body that is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub body: Option<ByteSize>,
    /// From the first byte of a request to the end of the response head.
    #[serde(
        skip_serializing_if = "Option::is_none",
        with = "jiff::fmt::serde::unsigned_duration::friendly::compact::optional"
    )]
    #[schemars(with = "Option<String>")]
    pub timeout: Option<Duration>,
    /// Requests of all sessions to this backend at the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrent: Option<u32>,
}

/// Limits of one operation, over all sessions of the tenant.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OperationLimits {
    /// Tokens of the operation's own bucket that come back each second; without it, it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_second: Option<f64>,
    /// Tokens that its own bucket may save up; `per_second`, at least 1, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Tokens that one request takes: of its own bucket, its session's and its tenant's.
    #[serde(default = "one")]
    pub cost: u32,
}

const fn one() -> u32 {
    1
}

/// `limits.toml`: rates and quotas of the tenant, and how long its users' files stay.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsFile {
    /// Requests of all of the tenant's sessions together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Rate>,
    /// Requests of each session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<Rate>,
    /// What the tenant may have at the same time.
    pub quotas: Quotas,
    /// When users' files go by themselves.
    #[serde(skip_serializing_if = "FileRetention::is_default")]
    pub retention: FileRetention,
}

/// `denied.toml`: who is refused although the token is good. Only a gateway that stands alone has it;
/// elsewhere the orchestrator ends sessions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DeniedFile {
    /// Tokens by `jti`; by the base64url of its SHA-256, if a token has none.
    pub tokens: BTreeSet<String>,
    /// Users.
    pub users: BTreeSet<String>,
    /// Conversations.
    pub conversations: BTreeSet<String>,
}

impl DeniedFile {
    /// Whether it names nobody.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it names this user or this conversation.
    #[must_use]
    pub fn names(&self, user: &str, conversation: &str) -> bool {
        self.users.contains(user) || self.conversations.contains(conversation)
    }
}

/// A token bucket, and how many requests may be in flight.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Tokens that come back each second.
    pub per_second: f64,
    /// Tokens that may be saved up; `per_second`, at least 1, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Requests at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrent: Option<u32>,
}

/// What a tenant may have at the same time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Quotas {
    /// Sandboxes that are not destroyed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandboxes: Option<u32>,
    /// Sandboxes made in any minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creates_per_minute: Option<u32>,
    /// Cores that its sandboxes may use, added up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u32>,
    /// Memory, likewise, such as `16GiB`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub memory: Option<ByteSize>,
    /// Disks, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub disk: Option<ByteSize>,
}

/// `templates/NAME.toml`: what a sandbox is made of.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TemplateFile {
    /// The root file system, an image that the operator offers; the host's `/usr`, read-only, if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The SandboxTemplate that this one means on Kubernetes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<String>,
    /// The least isolation that will do; `namespaces` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// What its sandboxes may call unless the create call says less.
    pub operations: Vec<Grant>,
    /// Cores, such as 0.5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<f64>,
    /// Memory of all processes together, such as `512MiB`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub memory: Option<ByteSize>,
    /// The size of `/data`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub disk: Option<ByteSize>,
    /// Processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// How long a sandbox may be unused.
    #[serde(
        skip_serializing_if = "Option::is_none",
        with = "jiff::fmt::serde::unsigned_duration::friendly::compact::optional"
    )]
    #[schemars(with = "Option<String>")]
    pub idle: Option<Duration>,
    /// What becomes of a sandbox that was unused for that long; if absent it is stopped where its files
    /// can be kept on disk, else destroyed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_idle: Option<OnIdle>,
    /// How long a sandbox stays paused before it is destroyed, its files kept; until its own end
    /// if absent.
    #[serde(
        skip_serializing_if = "Option::is_none",
        with = "jiff::fmt::serde::unsigned_duration::friendly::compact::optional"
    )]
    #[schemars(with = "Option<String>")]
    pub paused: Option<Duration>,
    /// How long a sandbox lives.
    #[serde(
        skip_serializing_if = "Option::is_none",
        with = "jiff::fmt::serde::unsigned_duration::friendly::compact::optional"
    )]
    #[schemars(with = "Option<String>")]
    pub ttl: Option<Duration>,
    /// Sandboxes that are kept ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_pool: Option<u32>,
    /// Commands that run inside before a sandbox counts as running, each by `/bin/sh` and to its end;
    /// one that fails fails the start.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub start: Vec<String>,
    /// Environment of every process inside. No secrets: they are readable inside.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Whether the session's token lies inside in a file that `SANDBOX_TOKEN_FILE` names, for clients that
    /// insist on one; the door needs none.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub token_file: bool,
}

/// What becomes of a sandbox that is unused for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnIdle {
    /// It is destroyed, its user's files are kept.
    Destroy,
    /// It is frozen with its memory, until somebody resumes it.
    Pause,
    /// It is kept on disk, with its memory where that can be, until somebody uses it.
    Stop,
}

mod as_base64 {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
