// SPDX-License-Identifier: Apache-2.0
//! Asks the tenant's policies, and turns a judged request into a granted one.
//!
//! [`Granted`] is made here only and cannot be changed: a filter that wants a change gives back
//! an unjudged request. What policies see is what will be forwarded, typed as the operation
//! declares it; what its types cannot hold is refused, never left out.
//!
//! A set in shadow is asked the same and changes nothing: what it would have said is handed on
//! with what policies saw, for the record.

use crate::body::{Admitted, AdmittedBody};
use crate::config::{HEAVY_CANDIDATES, HEAVY_EXPRESSIONS};
use crate::identify::Caller;
use crate::registry::Source;
use crate::reject::Reject;
use crate::route::Call;
use crate::snapshot::TenantRules;
use crate::validate::Valid;
use jiff::Timestamp;
use postern_common::decision::{PolicyPart, ShadowPart, ShadowScope};
use postern_common::id::{BackendName, DecisionId, OperationId, PolicyName, TenantId};
use postern_common::problem::Code;
use postern_common::session::{Peer, Session};
use postern_openapi::Document;
use postern_policies::{
    Decision, PeerFacts, PolicySource, Refused, RequestFacts, SessionEntities, TenantPolicies, TenantSchema,
    TypedRequest, record, schema_from_openapi,
};
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

/// A tenant's policies in force.
#[derive(Debug)]
pub(crate) struct Policies {
    schema: Arc<TenantSchema>,
    set: TenantPolicies,
    /// A whole set that only watches.
    shadow: Option<TenantPolicies>,
    /// Operations whose policies take long to decide.
    heavy: HashSet<(BackendName, OperationId)>,
}

/// The texts of a tenant's sets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sources<'c> {
    /// `None`: the tenant never put a set.
    pub(crate) enforced: Option<&'c BTreeMap<PolicyName, String>>,
    /// Empty: there is none.
    pub(crate) shadow: &'c BTreeMap<PolicyName, String>,
}

impl Policies {
    /// Whether it may take more than a few milliseconds to decide a request to this operation.
    pub(crate) fn is_heavy(&self, backend: &BackendName, operation: &OperationId) -> bool {
        !self.heavy.is_empty() && self.heavy.contains(&(backend.clone(), operation.clone()))
    }

    /// Loads a set against the backends' documents; what did not change since `before` is kept.
    ///
    /// # Errors
    /// Every mistake, with file and line.
    pub(crate) fn load<'d>(
        tenant: &TenantId,
        documents: impl Iterator<Item = (&'d BackendName, &'d Document)>,
        sources: Sources<'_>,
        before: Option<&Self>,
    ) -> Result<Self, Vec<String>> {
        let backends: Vec<_> =
            documents.map(|(name, document)| schema_from_openapi(name, document)).collect();
        let operations: Vec<_> = backends
            .iter()
            .flat_map(|backend| backend.operations.iter().map(|it| (backend.name.clone(), it.id.clone())))
            .collect();
        let schema = match before {
            Some(before) => TenantSchema::rebuild(&before.schema, tenant, &backends),
            None => TenantSchema::build(tenant, &backends),
        };
        let schema = schema.map_err(|error| vec![error.to_string()])?;
        let enforced = sources.enforced.map(|files| named(files, "policies"));
        let set = loaded(&schema, enforced.as_deref(), before.map(|before| &before.set))?;
        let shadow = if sources.shadow.is_empty() {
            None
        } else {
            let files = named(sources.shadow, "policies/shadow");
            let before = before.and_then(|before| before.shadow.as_ref());
            Some(loaded(&schema, Some(&files), before)?)
        };
        let sets = [Some(&set), shadow.as_ref()];
        let is_heavy = |operation: &(BackendName, OperationId)| {
            schema.action(&operation.0, &operation.1).is_some_and(|action| {
                let loads: Vec<_> = sets.iter().flatten().map(|set| set.load_of(action)).collect();
                loads.iter().map(|load| load.candidates).sum::<usize>() > HEAVY_CANDIDATES
                    || loads.iter().map(|load| load.expressions).sum::<usize>() > HEAVY_EXPRESSIONS
            })
        };
        let heavy = operations.into_iter().filter(is_heavy).collect();
        Ok(Self { schema, set, shadow, heavy })
    }
}

fn named(files: &BTreeMap<PolicyName, String>, folder: &str) -> Vec<PolicySource> {
    let file = |(name, text): (&PolicyName, &String)| PolicySource {
        name: format!("{folder}/{name}.cedar"),
        text: text.clone(),
    };
    files.iter().map(file).collect()
}

fn loaded(
    schema: &Arc<TenantSchema>,
    sources: Option<&[PolicySource]>,
    before: Option<&TenantPolicies>,
) -> Result<TenantPolicies, Vec<String>> {
    let set = match before {
        Some(before) => before.reload(schema, sources),
        None => TenantPolicies::load(schema, sources),
    };
    set.map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect())
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
    valid: Valid,
    policies: Vec<PolicyPart>,
}

impl Granted {
    pub(crate) fn call(&self) -> &Call {
        &self.valid.request.call
    }

    pub(crate) fn body(&self) -> &AdmittedBody {
        &self.valid.request.body
    }

    /// The policies that decided, and those in shadow that matched.
    pub(crate) fn policies(&self) -> &[PolicyPart] {
        &self.policies
    }

    /// Places that identity was written to.
    pub(crate) fn places(&self) -> &[String] {
        &self.valid.places
    }

    pub(crate) fn into_parts(self) -> (Call, AdmittedBody) {
        (self.valid.request.call, self.valid.request.body)
    }

    /// Gives the grant up, so that the request can be changed and judged again.
    pub(crate) fn into_unjudged(self) -> Admitted {
        self.valid.request
    }
}

/// A verdict, and what is written down beside it.
#[derive(Debug)]
pub(crate) struct Judged {
    pub(crate) outcome: Result<Granted, Reject>,
    pub(crate) watched: Watched,
}

/// What a decision leaves behind for its record; it changes nothing.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    /// What policies in shadow would have said.
    pub(crate) shadow: Vec<ShadowPart>,
    /// What policies saw; `None` if it is too large to be kept.
    pub(crate) evidence: Option<Box<str>>,
}

/// Decides. The outcome is [`Reject::Denied`] with the policies that denied, or
/// [`Reject::PolicyError`] where one could not be evaluated or the request does not fit the
/// policies' types.
pub(crate) fn decide(
    rules: &TenantRules,
    caller: &Caller,
    valid: Valid,
    (id, now): (&DecisionId, Timestamp),
) -> Judged {
    let mut watched = Watched::default();
    let outcome = outcome(rules, caller, valid, (id, now), &mut watched);
    Judged { outcome, watched }
}

fn outcome(
    rules: &TenantRules,
    caller: &Caller,
    valid: Valid,
    (id, now): (&DecisionId, Timestamp),
    watched: &mut Watched,
) -> Result<Granted, Reject> {
    let Policies { schema, set, shadow, heavy: _ } = &rules.policies;
    let entities = caller.session.entities.entities(schema, &caller.session.session)?;
    let call = &valid.request.call;
    let named = (&call.backend.name, &call.operation.operation.id);
    let action = schema.action(named.0, named.1).ok_or(Reject::Internal("an operation is no action"))?;
    let facts = RequestFacts {
        path: &valid.typed.path,
        query: &valid.typed.query,
        header: &valid.typed.header,
        body: valid.body_value(),
        peer: peer(caller),
        now,
    };
    let typed = TypedRequest::new(&entities, action, &facts);
    let decision = set.decide(&entities, &typed);
    watched.shadow = watching(&decision, shadow.as_ref().map(|set| set.decide(&entities, &typed)).as_ref());
    watched.evidence = record(id, &entities, named, &typed, &facts).map(String::into_boxed_str);
    let mut policies = decision.determining();
    policies.extend(decision.shadow().into_iter().flat_map(|shadow| shadow.policies));
    match decision.code() {
        None if decision.is_allowed() => Ok(Granted { valid, policies }),
        Some(Code::PolicyError) => Err(error(&decision)),
        _ => Err(Reject::Denied(policies)),
    }
}

/// What policies in shadow would have said: those of the set in force, and a whole set.
fn watching(decision: &Decision, set: Option<&Decision>) -> Vec<ShadowPart> {
    let ids = |parts: Vec<PolicyPart>| parts.into_iter().map(|part| part.id).collect();
    let policies = decision.shadow().map(|shadow| ShadowPart {
        scope: ShadowScope::Policies,
        verdict: shadow.verdict,
        policies: ids(shadow.policies),
    });
    let set = set.map(|set| ShadowPart {
        scope: ShadowScope::Set,
        verdict: set.verdict(),
        policies: ids(set.determining()),
    });
    policies.into_iter().chain(set).collect()
}

fn error(decision: &Decision) -> Reject {
    let message = match decision.refusal() {
        Some(Refused::Unfit(unfit)) => unfit.to_string(),
        Some(stale @ Refused::Stale) => stale.to_string(),
        None => "could not be evaluated for this request".to_owned(),
    };
    Reject::PolicyError { policies: decision.determining(), message }
}

fn peer(caller: &Caller) -> PeerFacts {
    match (&caller.source, &caller.session.session.peer) {
        (Source::Socket(_), _) => PeerFacts::Socket,
        (Source::Address(address), Peer::Pod { .. }) => PeerFacts::Pod(*address),
        (Source::Address(address), Peer::Address(_) | Peer::Socket(_) | Peer::Unbound) => {
            PeerFacts::Address(*address)
        }
    }
}
