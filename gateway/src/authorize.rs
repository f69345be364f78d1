// SPDX-License-Identifier: Apache-2.0
//! Asks the tenant's policies, and turns a judged request into a granted one.
//!
//! [`Granted`] is made here only and cannot be changed: a filter that wants a change gives back
//! an unjudged request. What policies see is what will be forwarded, typed as the operation
//! declares it; what its types cannot hold is refused, never left out.

use crate::body::{Admitted, AdmittedBody};
use crate::identify::Caller;
use crate::registry::Source;
use crate::reject::Reject;
use crate::route::Call;
use crate::snapshot::TenantRules;
use crate::validate::Valid;
use jiff::Timestamp;
use postern_common::decision::PolicyPart;
use postern_common::id::{BackendName, PolicyName, TenantId};
use postern_common::problem::Code;
use postern_common::session::{Peer, Session};
use postern_openapi::Document;
use postern_policies::{
    Decision, PeerFacts, PolicySource, Refused, RequestFacts, SessionEntities, TenantPolicies, TenantSchema,
    TypedRequest, schema_from_openapi,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A tenant's policies in force.
#[derive(Debug)]
pub(crate) struct Policies {
    schema: Arc<TenantSchema>,
    set: TenantPolicies,
}

impl Policies {
    /// Loads a set against the backends' documents; what did not change since `before` is kept.
    ///
    /// # Errors
    /// Every mistake, with file and line.
    pub(crate) fn load<'d>(
        tenant: &TenantId,
        documents: impl Iterator<Item = (&'d BackendName, &'d Document)>,
        sources: Option<&BTreeMap<PolicyName, String>>,
        before: Option<&Self>,
    ) -> Result<Self, Vec<String>> {
        let backends: Vec<_> =
            documents.map(|(name, document)| schema_from_openapi(name, document)).collect();
        let schema = match before {
            Some(before) => TenantSchema::rebuild(&before.schema, tenant, &backends),
            None => TenantSchema::build(tenant, &backends),
        };
        let schema = schema.map_err(|error| vec![error.to_string()])?;
        let sources: Option<Vec<PolicySource>> = sources.map(|sources| {
            let file = |(name, text): (&PolicyName, &String)| PolicySource {
                name: format!("policies/{name}.cedar"),
                text: text.clone(),
            };
            sources.iter().map(file).collect()
        });
        let set = match before {
            Some(before) => before.set.reload(&schema, sources.as_deref()),
            None => TenantPolicies::load(&schema, sources.as_deref()),
        };
        let set = set.map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        Ok(Self { schema, set })
    }
}

/// What policies know of a session: made at its first request, and again for a new schema.
#[derive(Debug, Default)]
pub(crate) struct EntityCache(Mutex<Option<(Arc<TenantSchema>, Arc<SessionEntities>)>>);

impl EntityCache {
    fn entities(
        &self,
        schema: &Arc<TenantSchema>,
        session: &Session,
    ) -> Result<Arc<SessionEntities>, Reject> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, entities)) = &*kept
            && Arc::ptr_eq(of, schema)
        {
            return Ok(Arc::clone(entities));
        }
        let built = SessionEntities::build(schema, session)
            .map_err(|error| Reject::PolicyError { policies: Vec::new(), message: error.to_string() })?;
        let built = Arc::new(built);
        *kept = Some((Arc::clone(schema), Arc::clone(&built)));
        Ok(built)
    }
}

/// A request that policies allow.
#[derive(Debug)]
pub(crate) struct Granted {
    request: Valid,
    policies: Vec<PolicyPart>,
}

impl Granted {
    pub(crate) fn call(&self) -> &Call {
        &self.request.call
    }

    pub(crate) fn body(&self) -> &AdmittedBody {
        &self.request.body
    }

    /// The policies that decided, and those in shadow that matched.
    pub(crate) fn policies(&self) -> &[PolicyPart] {
        &self.policies
    }

    /// Places that identity was written to.
    pub(crate) fn places(&self) -> &[String] {
        &self.request.places
    }

    pub(crate) fn into_parts(self) -> (Call, AdmittedBody) {
        (self.request.call, self.request.body)
    }

    /// Gives the grant up, so that the request can be changed and judged again.
    pub(crate) fn into_unjudged(self) -> Admitted {
        Admitted { call: self.request.call, body: self.request.body }
    }
}

/// Decides.
///
/// # Errors
/// [`Reject::Denied`] with the policies that denied, or [`Reject::PolicyError`] where one could
/// not be evaluated or the request does not fit the policies' types.
pub(crate) fn decide(
    rules: &TenantRules,
    caller: &Caller,
    request: Valid,
    now: Timestamp,
) -> Result<Granted, Reject> {
    let schema = &rules.policies.schema;
    let entities = caller.session.entities.entities(schema, &caller.session.session)?;
    let call = &request.call;
    let action = schema
        .action(&call.backend.name, &call.operation.operation.id)
        .ok_or(Reject::Internal("an operation is no action"))?;
    let facts = RequestFacts {
        path: &request.typed.path,
        query: &request.typed.query,
        header: &request.typed.header,
        body: request.body_value(),
        peer: peer(caller),
        now,
    };
    let typed = TypedRequest::new(&entities, action, &facts);
    let decision = rules.policies.set.decide(&entities, &typed);
    let mut policies = decision.determining();
    policies.extend(decision.shadow().into_iter().flat_map(|shadow| shadow.policies));
    match decision.code() {
        None if decision.is_allowed() => Ok(Granted { request, policies }),
        Some(Code::PolicyError) => Err(error(&decision)),
        _ => Err(Reject::Denied(policies)),
    }
}

fn error(decision: &Decision) -> Reject {
    let message = match decision.refusal() {
        Some(Refused::Unfit(unfit)) => unfit.to_string(),
        Some(stale @ Refused::Stale) => stale.to_string(),
        None => "could not be evaluated for this request".to_owned(),
    };
    Reject::PolicyError {
        policies: decision.determining().into_iter().map(|part| part.id).collect(),
        message,
    }
}

fn peer(caller: &Caller) -> PeerFacts {
    match (&caller.source, &caller.session.session.peer) {
        (Source::Socket(_), _) => PeerFacts::Socket,
        (Source::Address(address), Peer::Pod { .. }) => PeerFacts::Pod(*address),
        (Source::Address(address), Peer::Address(_) | Peer::Socket(_)) => PeerFacts::Address(*address),
    }
}
