// SPDX-License-Identifier: Apache-2.0
//! A routed request as its operation's typed context, ready to be decided.
//!
//! Values go from JSON straight to Cedar's, by the operation's shape. A request that does not fit
//! becomes one that every set denies; it is not an error of the caller's code. The time is put in
//! Cedar's terms only where a policy looks at it: that costs as much as all the rest.

use crate::decide::Question;
use crate::entities::SessionEntities;
use crate::schema::Action;
use crate::shape::{Constructor, Field, Shape, Unfit};
use cedar_policy_core::ast::{Context, EntityUID, Value};
use jiff::Timestamp;
use serde_json::Map;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock, OnceLock};

/// The field of the context that holds the time.
pub(crate) const NOW: &str = "now";

/// What a request said, already typed as its operation declares.
#[derive(Debug, Clone, Copy)]
pub struct RequestFacts<'a> {
    /// Path parameters.
    pub path: &'a Map<String, serde_json::Value>,
    /// Query parameters.
    pub query: &'a Map<String, serde_json::Value>,
    /// Declared headers, names in lower case.
    pub header: &'a Map<String, serde_json::Value>,
    /// The body, if it was read.
    pub body: Option<&'a serde_json::Value>,
    /// Where it came from.
    pub peer: PeerFacts,
    /// When.
    pub now: Timestamp,
}

/// Where a request came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerFacts {
    /// The sandbox's own socket.
    Socket,
    /// A pod.
    Pod(IpAddr),
    /// An address that an operator registered.
    Address(IpAddr),
}

/// A request that can be decided.
#[derive(Debug)]
pub struct TypedRequest {
    action: Arc<Action>,
    principal: Arc<EntityUID>,
    context: Result<RequestContext, Unfit>,
}

impl TypedRequest {
    /// Types what a request of `session` for `action` said.
    #[must_use]
    pub fn new(session: &SessionEntities, action: &Arc<Action>, facts: &RequestFacts<'_>) -> Self {
        Self {
            action: Arc::clone(action),
            principal: Arc::clone(session.principal.uid()),
            context: context(session, &action.context, facts),
        }
    }

    /// A request with any context, which comes from no gateway.
    #[cfg(test)]
    pub(crate) fn of_any(session: &SessionEntities, action: Arc<Action>, context: RequestContext) -> Self {
        Self { action, principal: Arc::clone(session.principal.uid()), context: Ok(context) }
    }

    /// What does not fit the typed context, if anything: such a request is denied.
    #[must_use]
    pub fn unfit(&self) -> Option<&Unfit> {
        self.context.as_ref().err()
    }

    pub(crate) fn is_of(&self, session: &SessionEntities) -> bool {
        self.action.origin == session.schema.origin() && Arc::ptr_eq(&self.principal, session.principal.uid())
    }

    /// What is asked of `session`'s policies, with the `context` that this request has.
    pub(crate) fn question<'a>(
        &'a self,
        session: &'a SessionEntities,
        context: &'a RequestContext,
    ) -> Question<'a> {
        Question {
            principal: &session.principal,
            action: &self.action.party,
            resource: &self.action.resource,
            context,
            world: session.world(),
        }
    }

    pub(crate) fn action(&self) -> &Arc<Action> {
        &self.action
    }

    pub(crate) fn context(&self) -> &Result<RequestContext, Unfit> {
        &self.context
    }
}

/// A context, with the time where it is needed.
#[derive(Debug)]
pub(crate) struct RequestContext {
    said: Context,
    now: Option<Timestamp>,
    with_now: OnceLock<Result<Context, Unfit>>,
}

impl RequestContext {
    /// A context to which no time belongs.
    pub(crate) fn timeless(said: Context) -> Self {
        Self { said, now: None, with_now: OnceLock::new() }
    }

    /// For policies of which none reads `now`.
    pub(crate) fn without_now(&self) -> &Context {
        &self.said
    }

    /// All of it, put together once.
    ///
    /// # Errors
    /// [`Unfit`] if Cedar cannot hold the time.
    pub(crate) fn with_now(&self) -> Result<&Context, Unfit> {
        let (Some(time), Context::Value(said)) = (self.now, &self.said) else { return Ok(&self.said) };
        let whole = self.with_now.get_or_init(|| {
            let mut values = said.as_ref().clone();
            values.insert(NOW.into(), now(time).map_err(|unfit| unfit.within(NOW))?);
            Ok(Context::Value(Arc::new(values)))
        });
        whole.as_ref().map_err(Clone::clone)
    }
}

fn context(
    session: &SessionEntities,
    shape: &Shape,
    facts: &RequestFacts<'_>,
) -> Result<RequestContext, Unfit> {
    let mut values = BTreeMap::new();
    let mut time = None;
    for field in shape.fields() {
        let name = field.name.as_str();
        let value = match name {
            "path" => Some(field.shape.object(facts.path)),
            "query" => Some(field.shape.object(facts.query)),
            "header" => Some(field.shape.object(facts.header)),
            "body" => body(field, facts.body),
            "claims" => Some(Ok(session.claims.clone())),
            "peer" => Some(peer(facts.peer)),
            NOW => {
                time = Some(facts.now);
                continue;
            }
            _ => None,
        };
        match value {
            Some(value) => drop(values.insert(name.into(), value.map_err(|unfit| unfit.within(name))?)),
            None if field.is_required => {
                return Err(Unfit::here("this part of the request is required").within(name));
            }
            None => {}
        }
    }
    Ok(RequestContext { now: time, ..RequestContext::timeless(Context::Value(Arc::new(values))) })
}

fn body(field: &Field, body: Option<&serde_json::Value>) -> Option<Result<Value, Unfit>> {
    match body {
        Some(serde_json::Value::Null) if field.is_nullable => None,
        Some(json) => Some(field.shape.value(json)),
        None => None,
    }
}

fn peer(peer: PeerFacts) -> Result<Value, Unfit> {
    let (kind, address) = match peer {
        PeerFacts::Socket => return Ok(SOCKET.clone()),
        PeerFacts::Pod(address) => ("pod", Some(address)),
        PeerFacts::Address(address) => ("address", Some(address)),
    };
    let mut values: Vec<(&str, Value)> = vec![("kind", kind.into())];
    if let Some(address) = address {
        let value = IP.and_then(|made| made.value(&address.to_string())).ok_or(Unfit::here("an address"))?;
        values.push(("address", value));
    }
    Ok(Value::record(values, None))
}

fn now(now: Timestamp) -> Result<Value, Unfit> {
    let text = format!("{now:.3}");
    DATETIME.and_then(|made| made.value(&text)).ok_or(Unfit::here("a time that Cedar can hold"))
}

/// What most requests say of their peer, made once.
static SOCKET: LazyLock<Value> = LazyLock::new(|| Value::record([("kind", Value::from("socket"))], None));
static IP: LazyLock<Option<Constructor>> = LazyLock::new(|| Constructor::of("ipaddr"));
static DATETIME: LazyLock<Option<Constructor>> = LazyLock::new(|| Constructor::of("datetime"));
