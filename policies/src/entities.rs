// SPDX-License-Identifier: Apache-2.0
//! A session as Cedar entities, built once and read by every request of the session.
//!
//! Holds the sandbox, its user, labels and claims, and the tenant's backends. Actions are added
//! only where a policy's conditions look at one: a tenant may have thousands.

use crate::names;
use crate::party::Party;
use crate::plan::Plans;
use crate::record::RecordedSession;
use crate::schema::{TenantSchema, entities, entity};
use cedar_policy_core::ast::{Entity, EntityUID, PartialValue, Value};
use cedar_policy_core::entities::Entities;
use postern_common::session::{Grant, Session};
use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

/// The session cannot be put in Cedar's terms.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The session is another tenant's.
    #[error("the session belongs to another tenant than the policies")]
    OtherTenant,
    /// Cedar refuses the entities.
    #[error("the session's entities contradict each other: {0}")]
    Refused(String),
}

/// What Cedar knows of one session. Build it again when the schema or the session changes.
#[derive(Debug)]
pub struct SessionEntities {
    pub(crate) schema: Arc<TenantSchema>,
    pub(crate) principal: Party,
    pub(crate) claims: Value,
    world: World,
    recorded: RecordedSession,
    plans: Plans,
}

/// Entities, with the schema's actions where they are needed.
#[derive(Debug)]
pub(crate) struct World {
    own: Entities,
    with_actions: OnceLock<Entities>,
}

impl World {
    pub(crate) fn new(own: Entities) -> Self {
        Self { own, with_actions: OnceLock::new() }
    }

    pub(crate) fn without_actions(&self) -> &Entities {
        &self.own
    }

    /// With the schema's actions where they are needed.
    pub(crate) fn entities(&self, schema: &TenantSchema, needs_actions: bool) -> &Entities {
        if needs_actions { self.with_actions(&schema.actions) } else { self.without_actions() }
    }

    /// The same with `actions`, put together once.
    pub(crate) fn with_actions(&self, actions: &[Entity]) -> &Entities {
        self.with_actions.get_or_init(|| {
            let all = self.own.iter().chain(actions).cloned();
            // INVARIANT: both parts are closed, and no action is an ancestor of what is none. If
            // an entity stood in both, the session's own would be all there is: fewer permits.
            entities(all).unwrap_or_else(|_duplicate| self.own.clone())
        })
    }
}

impl SessionEntities {
    /// Puts a session in Cedar's terms.
    ///
    /// # Errors
    /// [`SessionError`] if the session is not of the schema's tenant.
    pub fn build(schema: &Arc<TenantSchema>, session: &Session) -> Result<Self, SessionError> {
        Self::beside(schema, session, Vec::new())
    }

    /// As [`SessionEntities::build`], in a world where there is something else besides.
    pub(crate) fn beside(
        schema: &Arc<TenantSchema>,
        session: &Session,
        others: Vec<Entity>,
    ) -> Result<Self, SessionError> {
        let tenant = schema.tenant();
        if session.tenant != *tenant {
            return Err(SessionError::OtherTenant);
        }
        let sandbox_name = session.sandbox_id.as_str();
        let tenant_uid = names::tenant(tenant);
        let user = names::owned(&names::USER, tenant, session.user_id.as_str());
        let sandbox = names::owned(&names::SANDBOX, tenant, sandbox_name);
        let labels = names::owned(&names::LABELS, tenant, sandbox_name);
        let claims = names::owned(&names::CLAIMS, tenant, sandbox_name);
        let attributes: [(&'static str, Value); 7] = [
            ("tenant", tenant_uid.clone().into()),
            ("user", user.clone().into()),
            ("conversation", session.conversation_id.as_str().into()),
            ("template", session.template.as_str().into()),
            ("operations", operations(schema, &session.operations)),
            ("labels", labels.clone().into()),
            ("isolation", session.isolation.as_str().into()),
        ];
        let own = [
            entity(sandbox.clone(), attributes, [user.clone()]),
            entity(user, [], [tenant_uid]),
            tagged(labels, session.labels.iter().map(|(name, value)| (name.as_str(), value.clone()))),
            tagged(claims.clone(), session.claims.iter().map(|(name, value)| (name.as_str(), tag(value)))),
        ];
        let all = own.into_iter().chain(schema.shared.iter().cloned()).chain(others);
        let world = entities(all).map_err(SessionError::Refused)?;
        Ok(Self {
            schema: Arc::clone(schema),
            principal: Party::new(Arc::new(sandbox), &world),
            claims: claims.into(),
            world: World::new(world),
            recorded: RecordedSession::of(session),
            plans: Plans::default(),
        })
    }

    /// A session of any entities, for requests that come from no gateway.
    #[cfg(test)]
    pub(crate) fn of_any(schema: &Arc<TenantSchema>, principal: Party, world: World) -> Self {
        let recorded = RecordedSession::of(&crate::fixture::session(&[]));
        Self {
            schema: Arc::clone(schema),
            principal,
            claims: Value::empty_record(None),
            world,
            recorded,
            plans: Plans::default(),
        }
    }

    /// Whether these entities fit policies that were checked against `schema`.
    #[must_use]
    pub fn is_of(&self, schema: &Arc<TenantSchema>) -> bool {
        Arc::ptr_eq(&self.schema, schema)
    }

    pub(crate) fn world(&self) -> &World {
        &self.world
    }

    /// What its requests have in common.
    pub(crate) fn plans(&self) -> &Plans {
        &self.plans
    }

    /// What records of decisions hold of it.
    pub(crate) fn recorded(&self) -> &RecordedSession {
        &self.recorded
    }

    /// The entities in Cedar's JSON, for people.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        self.world.without_actions().to_json_value().unwrap_or_default()
    }
}

/// Grants as policies compare them: `backend/name` always, also where a bare name was written.
fn operations(schema: &TenantSchema, grants: &[Grant]) -> Value {
    let mut backends = schema.backends();
    let only = backends.next().filter(|_| backends.next().is_none());
    let names = grants.iter().filter_map(|grant| match grant {
        Grant::Bare(name) => only.map(|backend| format!("{backend}/{name}")),
        Grant::Everything | Grant::FilesSync | Grant::Of(..) => Some(grant.to_string()),
    });
    Value::set(names.map(|name| name.as_str().into()), None)
}

/// A claim as a tag: text as it is, anything else as its JSON.
fn tag(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn tagged<'a>(uid: EntityUID, tags: impl Iterator<Item = (&'a str, String)>) -> Entity {
    let tags = tags.map(|(name, value)| (name.into(), PartialValue::from(Value::from(value.as_str()))));
    Entity::new_with_attr_partial_value(uid, [], HashSet::new(), HashSet::new(), tags)
}
