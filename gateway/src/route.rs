// SPDX-License-Identifier: Apache-2.0
//! From a path to the backend and operation that it means, if the session may call it at all.
//!
//! A first segment that is a backend's name always means that backend; else the tenant's default
//! or only backend is meant. What a path means does not depend on what the caller may do.

use crate::head::{Parsed, Trailers};
use crate::identify::Caller;
use crate::limits::HeldRoom;
use crate::reject::Reject;
use crate::snapshot::{Backend, OperationRules, TenantRules};
use crate::websocket::{Asked, Key};
use http::HeaderMap;
use hyper::body::Incoming;
use postern_common::decision::{Effect, Mode, PolicyPart};
use postern_common::session::Grant;
use postern_openapi::route::PathParameters;
use postern_openapi::{Lookup, Query, RequestPath};
use postern_policies::{NOT_GRANTED, not_granted};
use std::sync::Arc;

/// A request to an operation, without its body. Stages change it; nothing else is forwarded.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) backend: Arc<Backend>,
    pub(crate) operation: Arc<OperationRules>,
    /// The path within the backend, as it was asked for.
    pub(crate) path: RequestPath,
    pub(crate) parameters: PathParameters,
    pub(crate) query: Query,
    /// Shared with the filters that see them; copied only if somebody changes them meanwhile.
    pub(crate) headers: Arc<HeaderMap>,
    /// Memory that a judged body takes, given back with the call.
    pub(crate) room: Option<Arc<HeldRoom>>,
    pub(crate) trailers: Trailers,
    /// The backend is asked for a WebSocket with this key.
    pub(crate) websocket: Option<Key>,
}

impl Call {
    /// The path to forward: made from the template and what its parameters stand for.
    pub(crate) fn forwarded_path(&self) -> Result<String, Reject> {
        let operation = &self.operation.operation;
        if !operation.is_described {
            return Ok(self.path.rebuild());
        }
        let rebuilt = operation.path.rebuild(|name| self.parameters.get(name));
        rebuilt.map_err(|refusal| Reject::Malformed(refusal.to_string()))
    }
}

/// A request that means an operation which the session's token names.
#[derive(Debug)]
pub(crate) struct Routed {
    pub(crate) call: Call,
    pub(crate) body: Incoming,
    /// The sandbox's side of the WebSocket that it asks for.
    pub(crate) websocket: Option<Asked>,
}

/// Finds the operation.
///
/// # Errors
/// [`Reject::RouteUnknown`], [`Reject::MethodNotAllowed`], or [`Reject::Denied`] by the baseline
/// where the session's token does not name the operation: such a caller's body is not read;
/// [`Reject::Upgrade`] where the operation takes no WebSocket.
pub(crate) fn find(rules: &TenantRules, caller: &Caller, request: Parsed) -> Result<Routed, Reject> {
    let (backend, path) = backend_of(rules, request.path)?;
    let (index, parameters) = match backend.document.routes().lookup(request.method, &path) {
        Lookup::Found(found) => (found.operation, found.parameters),
        Lookup::MethodNotAllowed { allow } => {
            let allow: Vec<_> = allow.iter().map(|method| method.as_str()).collect();
            return Err(Reject::MethodNotAllowed(allow.join(", ")));
        }
        Lookup::Unknown => return Err(Reject::RouteUnknown),
    };
    let operation = backend.operations.get(index).map(Arc::clone).ok_or(Reject::RouteUnknown)?;
    check_grants(rules, caller, &backend, &operation)?;
    if request.websocket.is_some() && !operation.takes_websockets {
        return Err(Reject::Upgrade);
    }
    let call = Call {
        backend,
        operation,
        path,
        parameters,
        query: request.query,
        headers: Arc::new(request.headers),
        room: None,
        trailers: request.trailers,
        websocket: request.websocket.as_ref().map(|_asked| Key::generate()).transpose()?,
    };
    Ok(Routed { call, body: request.body, websocket: request.websocket })
}

fn backend_of(rules: &TenantRules, path: RequestPath) -> Result<(Arc<Backend>, RequestPath), Reject> {
    if let Some((first, rest)) = path.split_first()
        && let Some(backend) = rules.backends.get(first)
    {
        return Ok((Arc::clone(backend), rest));
    }
    let backend = rules.default_backend.as_ref().ok_or(Reject::RouteUnknown)?;
    Ok((Arc::clone(backend), path))
}

/// The baseline's first rule: only operations that both session and token name.
///
/// The policy engine judges it again with everything else; here it keeps a caller that is
/// refused anyway from having its body read.
fn check_grants(
    rules: &TenantRules,
    caller: &Caller,
    backend: &Backend,
    rule: &OperationRules,
) -> Result<(), Reject> {
    let operation = &rule.operation;
    let covers = |grants: &[Grant]| {
        grants.iter().any(|grant| {
            let groups = operation.tags.iter().map(String::as_str).chain([operation.group().as_str()]);
            grant.covers(&backend.name, &operation.id, groups, rules.backends.len() == 1)
        })
    };
    if covers(&caller.session.session.operations) && covers(&caller.claims.operations) {
        return Ok(());
    }
    Err(Reject::Denied(vec![PolicyPart {
        id: not_granted(&backend.name, &operation.id),
        effect: Effect::Forbid,
        mode: Mode::Enforce,
        reason: Some(NOT_GRANTED.to_owned()),
    }]))
}
