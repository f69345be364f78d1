// SPDX-License-Identifier: Apache-2.0
//! A small tenant that the tests of this crate ask about: one backend, a session, a request.

use crate::{
    Action, BackendSchema, Decision, PeerFacts, PolicySource, RequestFacts, SessionEntities, TenantPolicies,
    TenantSchema, TypedRequest, schema_from_openapi,
};
use jiff::Timestamp;
use postern_common::id::{BackendName, OperationId, TenantId};
use postern_common::session::{Grant, Isolation, Peer, Session};
use serde_json::{Value, json};
use std::sync::Arc;

pub(crate) const DOCUMENT: &str = include_str!("../tests/desk.yaml");

pub(crate) fn desk() -> BackendSchema {
    let document = postern_openapi::Document::parse(DOCUMENT).expect("the document is right");
    schema_from_openapi(&backend("support-desk"), &document)
}

pub(crate) fn backend(name: &str) -> BackendName {
    BackendName::parse(name).expect("a name")
}

pub(crate) fn schema() -> Arc<TenantSchema> {
    TenantSchema::build(&TenantId::parse("acme").expect("a name"), &[desk()]).expect("the schema is right")
}

pub(crate) fn source(text: &str) -> PolicySource {
    PolicySource { name: "policies/own.cedar".to_owned(), text: text.to_owned() }
}

pub(crate) fn load(schema: &Arc<TenantSchema>, text: &str) -> TenantPolicies {
    TenantPolicies::load(schema, Some(&[source(text)]))
        .unwrap_or_else(|mistakes| panic!("{}", told(&mistakes)))
}

pub(crate) fn told(mistakes: &[crate::Mistake]) -> String {
    mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n\n")
}

pub(crate) fn session(operations: &[&str]) -> Session {
    let grants = operations.iter().map(|grant| grant.parse::<Grant>().expect("a grant"));
    Session {
        sandbox_id: "sandbox-abcdefghijkl".parse().expect("an id"),
        tenant: "acme".parse().expect("a name"),
        user_id: "alice".parse().expect("an id"),
        conversation_id: "conversation 1".parse().expect("an id"),
        operations: grants.collect(),
        tokens: Vec::new(),
        peer: Peer::Address([127, 0, 0, 1].into()),
        expires_at: Timestamp::UNIX_EPOCH,
        template: "default".parse().expect("a name"),
        isolation: Isolation::Gvisor,
        labels: [("plan".to_owned(), "pro".to_owned())].into(),
        claims: json!({"locale": "de", "age": 41}).as_object().cloned().expect("an object"),
    }
}

/// A request as the gateway would bring it, with what a test wants to vary.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) operation: &'static str,
    pub(crate) path: Value,
    pub(crate) query: Value,
    pub(crate) header: Value,
    pub(crate) body: Option<Value>,
    pub(crate) now: &'static str,
}

impl Asked {
    pub(crate) fn new(operation: &'static str) -> Self {
        Self {
            operation,
            path: json!({}),
            query: json!({}),
            header: json!({}),
            body: None,
            now: "2026-03-04T05:06:07Z",
        }
    }

    pub(crate) fn refund(body: Value) -> Self {
        Self { body: Some(body), path: json!({"order_id": 7}), ..Self::new("createRefund") }
    }

    pub(crate) fn list() -> Self {
        Self { query: json!({"user_id": "alice"}), ..Self::new("listOrders") }
    }

    pub(crate) fn typed(&self, schema: &TenantSchema, session: &SessionEntities) -> TypedRequest {
        let object = |value: &Value| value.as_object().cloned().expect("an object");
        let (path, query, header) = (object(&self.path), object(&self.query), object(&self.header));
        let facts = RequestFacts {
            path: &path,
            query: &query,
            header: &header,
            body: self.body.as_ref(),
            peer: PeerFacts::Socket,
            now: self.now.parse().expect("a time"),
        };
        TypedRequest::new(session, &self.action(schema), &facts)
    }

    pub(crate) fn action(&self, schema: &TenantSchema) -> Arc<Action> {
        let operation = OperationId::parse(self.operation).expect("an id");
        Arc::clone(schema.action(&backend("support-desk"), &operation).expect("an operation"))
    }
}

pub(crate) fn decide(policies: &TenantPolicies, operations: &[&str], asked: &Asked) -> Decision {
    let session = SessionEntities::build(policies.schema(), &session(operations)).expect("a session");
    policies.decide(&session, &asked.typed(policies.schema(), &session))
}
