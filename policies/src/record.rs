// SPDX-License-Identifier: Apache-2.0
//! What policies saw of a request, kept so that it can be explained and decided again.
//!
//! Only what the typed context holds is kept: no undeclared field of a body, no header that the
//! document does not name. A field that the document marks `x-postern-sensitive` is a digest:
//! equal values have equal digests while one gateway lives, and nothing else is to be learnt.

use crate::entities::SessionEntities;
use crate::request::{PeerFacts, RequestFacts, TypedRequest};
use crate::schema::{Action, TenantSchema};
use crate::shape::{Field, Shape};
use crate::unknown::Places;
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use jiff::Timestamp;
use postern_common::id::{
    BackendName, ConversationId, DecisionId, OperationId, SandboxId, TemplateName, UserId,
};
use postern_common::session::{Grant, Isolation, Peer, Session};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, LazyLock};

/// Bytes of what is kept of one request; larger ones are not kept, and said to be so.
pub const RECORD_BYTES: usize = 16 * 1024;
/// Characters of a digest: 96 bits.
const DIGEST_CHARACTERS: usize = 24;

/// A request with all that policies saw of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedRequest {
    /// The decision that was made of it.
    pub decision: DecisionId,
    /// Who asked.
    pub session: RecordedSession,
    /// The backend that was asked.
    pub backend: BackendName,
    /// For what.
    pub operation: OperationId,
    /// Path parameters.
    #[serde(default)]
    pub path: Map<String, Value>,
    /// Query parameters.
    #[serde(default)]
    pub query: Map<String, Value>,
    /// Declared headers.
    #[serde(default)]
    pub header: Map<String, Value>,
    /// The body, if it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Value>,
    /// Where it came from.
    pub peer: PeerFacts,
    /// When.
    pub now: Timestamp,
    /// Places of the context that hold a digest; `*` stands for the members of a list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub digested: Vec<Vec<String>>,
    /// Why the request did not fit the typed context; then nothing of what it said is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfit: Option<String>,
}

/// What policies know of a session; nothing that would let anybody in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedSession {
    /// The sandbox.
    pub sandbox_id: SandboxId,
    /// Its user.
    pub user_id: UserId,
    /// Its conversation.
    pub conversation_id: ConversationId,
    /// What its token names.
    pub operations: Vec<Grant>,
    /// Its template.
    pub template: TemplateName,
    /// Its isolation.
    pub isolation: Isolation,
    /// The application's labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What else the application says of the user.
    #[serde(default)]
    pub claims: Map<String, Value>,
}

/// As [`RecordedRequest`], of borrowed parts: this is written on the request path.
#[derive(Debug, Serialize)]
struct Written<'a> {
    decision: &'a DecisionId,
    session: &'a RecordedSession,
    backend: &'a BackendName,
    operation: &'a OperationId,
    path: Value,
    query: Value,
    header: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<Value>,
    peer: PeerFacts,
    now: Timestamp,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    digested: BTreeSet<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unfit: Option<String>,
}

/// What is kept of a request, as the JSON of a [`RecordedRequest`]; `None` if it is larger than
/// [`RECORD_BYTES`].
///
/// Cost: some µs, and no more than the bound for a large body.
#[must_use]
pub fn record(
    decision: &DecisionId,
    session: &SessionEntities,
    (backend, operation): (&BackendName, &OperationId),
    request: &TypedRequest,
    facts: &RequestFacts<'_>,
) -> Option<String> {
    let mut hiding = Hiding::default();
    let unfit = request.unfit().map(ToString::to_string);
    let said = unfit.is_none();
    let mut part = |name: &str, object: &Map<String, Value>| {
        let shape = request.action().context.fields().iter().find(|field| field.name == name);
        match shape {
            Some(field) if said => hiding.within(name, |hiding| hiding.object(field.shape.fields(), object)),
            _ => Value::Object(Map::new()),
        }
    };
    let (path, query, header) =
        (part("path", facts.path), part("query", facts.query), part("header", facts.header));
    let shape = request.action().context.fields().iter().find(|field| field.name == "body");
    let body = facts.body.zip(shape).filter(|_| said).map(|(body, field)| hiding.field(field, body));
    let written = Written {
        decision,
        session: session.recorded(),
        backend,
        operation,
        path,
        query,
        header,
        body,
        peer: facts.peer,
        now: facts.now,
        digested: hiding.found,
        unfit,
    };
    let mut bounded = Bounded(Vec::with_capacity(1024));
    serde_json::to_writer(&mut bounded, &written).ok()?;
    String::from_utf8(bounded.0).ok()
}

/// Copies what a shape declares and puts digests where it is sensitive.
#[derive(Debug, Default)]
struct Hiding {
    at: Vec<String>,
    found: BTreeSet<Vec<String>>,
}

impl Hiding {
    fn within<T>(&mut self, name: &str, look: impl FnOnce(&mut Self) -> T) -> T {
        self.at.push(name.to_owned());
        let found = look(self);
        self.at.pop();
        found
    }

    fn field(&mut self, field: &Field, value: &Value) -> Value {
        self.within(&field.name, |hiding| {
            if field.is_sensitive && !value.is_null() {
                hiding.found.insert(hiding.at.clone());
                return Value::String(digest(value));
            }
            hiding.value(&field.shape, value)
        })
    }

    fn object(&mut self, fields: &[Field], object: &Map<String, Value>) -> Value {
        let kept = fields
            .iter()
            .filter_map(|field| object.get(&field.name).map(|value| (field, value)))
            .map(|(field, value)| (field.name.clone(), self.field(field, value)));
        Value::Object(kept.collect())
    }

    fn value(&mut self, shape: &Shape, value: &Value) -> Value {
        match (shape, value) {
            (Shape::Record(fields), Value::Object(object)) => self.object(fields, object),
            (Shape::Set(element), Value::Array(items)) => {
                let items = items.iter();
                self.within("*", |hiding| items.map(|item| hiding.value(element, item)).collect())
            }
            _ => value.clone(),
        }
    }
}

/// A key of this process, so that digests tell nothing to who cannot ask it.
static DIGEST_KEY: LazyLock<Option<hmac::Key>> =
    LazyLock::new(|| hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok());

fn digest(value: &Value) -> String {
    let Some(key) = DIGEST_KEY.as_ref() else { return "digest:none".to_owned() };
    let tag = hmac::sign(key, value.to_string().as_bytes());
    let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("digest:{}", hex.get(..DIGEST_CHARACTERS).unwrap_or_default())
}

/// Refuses to grow over the bound.
#[derive(Debug)]
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > RECORD_BYTES {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A recorded request in the terms of a schema, ready to be decided.
#[derive(Debug)]
pub(crate) struct Revived {
    pub(crate) session: SessionEntities,
    pub(crate) request: TypedRequest,
}

impl RecordedSession {
    /// What is kept of a session.
    #[must_use]
    pub fn of(session: &Session) -> Self {
        Self {
            sandbox_id: session.sandbox_id.clone(),
            user_id: session.user_id.clone(),
            conversation_id: session.conversation_id.clone(),
            operations: session.operations.clone(),
            template: session.template.clone(),
            isolation: session.isolation,
            labels: session.labels.clone(),
            claims: session.claims.clone(),
        }
    }

    fn session(&self, schema: &TenantSchema) -> Session {
        Session {
            sandbox_id: self.sandbox_id.clone(),
            tenant: schema.tenant().clone(),
            user_id: self.user_id.clone(),
            conversation_id: self.conversation_id.clone(),
            operations: self.operations.clone(),
            tokens: Vec::new(),
            peer: Peer::Address(std::net::Ipv4Addr::LOCALHOST.into()),
            expires_at: Timestamp::MAX,
            template: self.template.clone(),
            isolation: self.isolation,
            labels: self.labels.clone(),
            claims: self.claims.clone(),
        }
    }
}

impl RecordedRequest {
    /// Reads what [`record`] wrote.
    ///
    /// # Errors
    /// If it is not that.
    pub fn read(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// The places of the context whose values are not known. Of a list with digests in it, nothing
    /// is.
    pub(crate) fn unknown(&self) -> Places {
        let outer = |place: &Vec<String>| place.iter().take_while(|name| *name != "*").cloned().collect();
        self.digested.iter().map(outer).collect()
    }

    /// `None` if there is no such operation, or no such session, under this schema. What is not
    /// known is left out of the context.
    pub(crate) fn revive(&self, schema: &Arc<TenantSchema>) -> Option<Revived> {
        let action = schema.action(&self.backend, &self.operation)?;
        let session = SessionEntities::build(schema, &self.session.session(schema)).ok()?;
        let request = if self.digested.is_empty() {
            self.typed(&session, action, self)
        } else {
            let mut known = self.clone();
            let mut relaxed = Action::clone(action);
            for place in self.unknown() {
                relaxed.context.relax(&place);
                known.forget(&place);
            }
            self.typed(&session, &Arc::new(relaxed), &known)
        };
        Some(Revived { session, request })
    }

    fn typed(&self, session: &SessionEntities, action: &Arc<Action>, known: &Self) -> TypedRequest {
        let facts = RequestFacts {
            path: &known.path,
            query: &known.query,
            header: &known.header,
            body: known.body.as_ref(),
            peer: self.peer,
            now: self.now,
        };
        TypedRequest::new(session, action, &facts)
    }

    fn forget(&mut self, path: &[String]) {
        match path {
            [part] if part == "body" => self.body = None,
            [part, rest @ ..] => match part.as_str() {
                "path" => forget(&mut self.path, rest),
                "query" => forget(&mut self.query, rest),
                "header" => forget(&mut self.header, rest),
                _ => {
                    if let Some(Value::Object(body)) = &mut self.body {
                        forget(body, rest);
                    }
                }
            },
            [] => {}
        }
    }
}

fn forget(object: &mut Map<String, Value>, path: &[String]) {
    match path {
        [name] => drop(object.remove(name)),
        [name, rest @ ..] => {
            if let Some(Value::Object(inner)) = object.get_mut(name) {
                forget(inner, rest);
            }
        }
        [] => {}
    }
}

#[cfg(test)]
mod tests;
