// SPDX-License-Identifier: Apache-2.0
//! What a gateway knows of a session, and what a session may call.

use crate::id::{BackendName, ConversationId, OperationId, SandboxId, TemplateName, TenantId, UserId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

/// The operation that carries a sandbox's files to the orchestrator; no tenant can name a
/// backend so, since backend names hold no colon.
pub const FILES_SYNC: &str = "files:sync";

/// One entry of a token's `operations`: what the session may call, at most.
///
/// Written `BACKEND/OPERATION`, `BACKEND/GROUP`, a bare `OPERATION` or `GROUP` (only where the
/// tenant has one backend), `*`, or `files:sync`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Grant {
    /// Everything that the tenant's backends offer.
    Everything,
    /// The built-in route of a sandbox's files.
    FilesSync,
    /// An operation or a group of operations of one backend.
    Of(BackendName, OperationId),
    /// An operation or group of the tenant's only backend.
    Bare(OperationId),
}

/// Text that is not a grant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an operation: expected `BACKEND/OPERATION`, `BACKEND/GROUP` or `*`")]
pub struct InvalidGrant(String);

impl std::str::FromStr for Grant {
    type Err = InvalidGrant;

    fn from_str(text: &str) -> Result<Self, InvalidGrant> {
        let invalid = || InvalidGrant(text.chars().take(200).flat_map(char::escape_default).collect());
        match text {
            "*" => return Ok(Self::Everything),
            FILES_SYNC => return Ok(Self::FilesSync),
            _ => {}
        }
        match text.split_once('/') {
            Some((backend, operation)) => Ok(Self::Of(
                BackendName::parse(backend).map_err(|_malformed| invalid())?,
                OperationId::parse(operation).map_err(|_malformed| invalid())?,
            )),
            None => OperationId::parse(text).map(Self::Bare).map_err(|_malformed| invalid()),
        }
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => formatter.write_str("*"),
            Self::FilesSync => formatter.write_str(FILES_SYNC),
            Self::Of(backend, operation) => write!(formatter, "{backend}/{operation}"),
            Self::Bare(operation) => write!(formatter, "{operation}"),
        }
    }
}

impl Serialize for Grant {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Grant {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

impl schemars::JsonSchema for Grant {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Grant".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "`BACKEND/OPERATION`, `BACKEND/GROUP`, a bare name where there is one backend, or `*`"
        })
    }
}

impl Grant {
    /// Whether this grant covers one operation of a backend that lies in `groups`.
    ///
    /// `only_backend` says that the tenant has no other, which is when bare names count.
    #[must_use]
    pub fn covers<'a>(
        &self,
        backend: &BackendName,
        operation: &OperationId,
        groups: impl IntoIterator<Item = &'a str>,
        only_backend: bool,
    ) -> bool {
        let names =
            |name: &OperationId| name == operation || groups.into_iter().any(|group| group == name.as_str());
        match self {
            Self::Everything => true,
            Self::FilesSync => false,
            Self::Of(of, name) => of == backend && names(name),
            Self::Bare(name) => only_backend && names(name),
        }
    }
}

/// Where a session's requests must come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Peer {
    /// The sandbox's own unix socket: the gateway listens there for nobody else.
    Socket(PathBuf),
    /// A pod, with every address that it has.
    Pod {
        /// The pod's UID.
        uid: String,
        /// Its addresses.
        addresses: Vec<IpAddr>,
    },
    /// An address that an operator registered, for tests and clients that are no sandboxes.
    Address(IpAddr),
    /// Any TCP peer: only where no orchestrator can say more, in a gateway that stands alone.
    Unbound,
}

/// The isolation that a sandbox has.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Namespaces, seccomp and Landlock: shares the host's kernel.
    Namespaces,
    /// gVisor: a kernel of its own in user space.
    Gvisor,
    /// Kata: a virtual machine.
    Kata,
}

impl Isolation {
    /// The name in the API, in policies and in messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Gvisor => "gvisor",
            Self::Kata => "kata",
        }
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A token of the session that is accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptedToken {
    /// The token's `jti`.
    pub jti: String,
    /// Accepted before this time: its `exp`, or 60 s after it was replaced.
    pub until: Timestamp,
}

/// A live session, as the orchestrator tells it to gateways. The registry's word is final: a
/// token that claims more than this is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Whose session it is.
    pub sandbox_id: SandboxId,
    /// The sandbox's tenant.
    pub tenant: TenantId,
    /// The sandbox's user.
    pub user_id: UserId,
    /// The sandbox's conversation.
    pub conversation_id: ConversationId,
    /// What it may call, at most.
    pub operations: Vec<Grant>,
    /// The tokens that are accepted: the current one and perhaps the one before.
    pub tokens: Vec<AcceptedToken>,
    /// Where its requests must come from.
    pub peer: Peer,
    /// The session's own end.
    pub expires_at: Timestamp,
    /// The template that the sandbox was made from.
    pub template: TemplateName,
    /// The isolation that it has.
    pub isolation: Isolation,
    /// The application's labels.
    pub labels: BTreeMap<String, String>,
    /// What else the application says of the user: plan, locale. Never identity.
    pub claims: serde_json::Map<String, serde_json::Value>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn grant(text: &str) -> Grant {
        text.parse().expect("a grant")
    }

    fn covers(text: &str, backend: &str, operation: &str, only_backend: bool) -> bool {
        let backend = BackendName::parse(backend).expect("a name");
        let operation = OperationId::parse(operation).expect("an id");
        grant(text).covers(&backend, &operation, ["read", "orders"], only_backend)
    }

    #[test]
    fn a_grant_covers_its_operation_or_group_of_its_backend_only() {
        assert!(covers("desk/listOrders", "desk", "listOrders", false));
        assert!(covers("desk/read", "desk", "listOrders", false));
        assert!(covers("desk/orders", "desk", "listOrders", false));
        assert!(!covers("desk/write", "desk", "listOrders", false));
        assert!(!covers("desk/listOrder", "desk", "listOrders", false));
        assert!(!covers("other/read", "desk", "listOrders", false));
        assert!(covers("*", "desk", "listOrders", false));
        assert!(!covers(FILES_SYNC, "desk", "listOrders", true));
    }

    #[test]
    fn a_bare_name_counts_only_where_there_is_one_backend() {
        assert!(covers("listOrders", "desk", "listOrders", true));
        assert!(!covers("listOrders", "desk", "listOrders", false));
        assert!(!covers("read", "desk", "listOrders", false));
    }

    #[test]
    fn malformed_grants_are_refused() {
        for bad in ["", "/", "desk/", "/read", "desk/a/b", "De sk/read", "desk/..", "files:sync/x y"] {
            assert!(bad.parse::<Grant>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_grant_reads_back_as_it_was_written(text in "\\*|files:sync|([a-z][a-z0-9-]{0,8}/)?[a-zA-Z0-9_]{1,12}") {
            prop_assert_eq!(grant(&text).to_string(), text);
        }
    }
}
