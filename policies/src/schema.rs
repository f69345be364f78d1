// SPDX-License-Identifier: Apache-2.0
//! A tenant's Cedar schema: ours, and a namespace for each of its backends.
//!
//! It is built once for a configuration and shared by policies, sessions and requests. Where its
//! backends' parts come from (an OpenAPI document, most often) is `schema_from_openapi`'s affair.

use crate::names;
use crate::party::Party;
use crate::shape::Shape;
use cedar_policy_core::ast::{Eid, Entity, EntityUID, Name, PartialValue, Value};
use cedar_policy_core::entities::{Entities, NoEntitiesSchema, TCComputation};
use cedar_policy_core::extensions::Extensions;
use cedar_policy_core::validator::{Validator, ValidatorSchema};
use postern_common::id::{BackendName, OperationId, TenantId};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The part of the schema that every tenant has.
pub const BASE: &str = include_str!("../schema.cedarschema");

/// Schemas built so far.
static BUILT: AtomicU64 = AtomicU64::new(0);

/// A backend's part of the schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendSchema {
    /// The backend.
    pub name: BackendName,
    /// Its namespace, in Cedar's schema language.
    pub text: String,
    /// Its operations, each an action of that namespace.
    pub operations: Vec<DeclaredOperation>,
}

/// An operation and what its action's type does not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredOperation {
    /// The operation.
    pub id: OperationId,
    /// `read` or `write`, and its tags.
    pub groups: Vec<String>,
    /// Optional fields of the context for which `null` says what absence says; `*` stands for the
    /// members of a list.
    pub nullable: Vec<Vec<String>>,
    /// Fields of the context of which records of decisions hold a digest, spelt the same way.
    pub sensitive: Vec<Vec<String>>,
}

/// The schema cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// Cedar refuses the schema.
    #[error("the schema of tenant `{tenant}` cannot be used: {reason}")]
    Refused {
        /// Whose it is.
        tenant: TenantId,
        /// Why, in Cedar's words.
        reason: String,
    },
    /// A backend's part does not define what it lists.
    #[error("backend `{backend}` lists operation `{operation}`, which its schema does not define")]
    MissingAction {
        /// The backend.
        backend: BackendName,
        /// The operation without an action.
        operation: OperationId,
    },
}

/// What a tenant's policies may speak of.
pub struct TenantSchema {
    /// Tells this schema from every other of the process.
    origin: u64,
    tenant: TenantId,
    text: String,
    validator: Validator,
    backends: BTreeMap<BackendName, Backend>,
    /// Tenant and backends, which all sessions share.
    pub(crate) shared: Vec<Entity>,
    /// The actions, which few policies look at.
    pub(crate) actions: Vec<Entity>,
}

struct Backend {
    operations: HashMap<OperationId, Arc<Action>>,
    groups: Vec<DeclaredOperation>,
}

/// An operation, ready to be asked about.
#[derive(Debug, Clone)]
pub struct Action {
    pub(crate) origin: u64,
    pub(crate) party: Party,
    pub(crate) resource: Arc<Party>,
    pub(crate) context: Shape,
}

impl Action {
    /// The same of another backend.
    pub(crate) fn to(&self, resource: Party) -> Self {
        Self { resource: Arc::new(resource), ..self.clone() }
    }
}

impl std::fmt::Debug for TenantSchema {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("TenantSchema").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

impl TenantSchema {
    /// Builds the schema of a tenant with these backends.
    ///
    /// # Errors
    /// [`SchemaError`] if a backend's part is not valid together with ours.
    pub fn build(tenant: &TenantId, backends: &[BackendSchema]) -> Result<Arc<Self>, SchemaError> {
        let text = [BASE]
            .into_iter()
            .chain(backends.iter().map(|backend| backend.text.as_str()))
            .collect::<Vec<_>>()
            .join("\n");
        Self::assemble(tenant, text, backends)
    }

    /// A schema that stands alone: neither ours nor a backend's.
    ///
    /// # Errors
    /// [`SchemaError::Refused`] if Cedar refuses the text.
    pub(crate) fn alone(text: String) -> Result<Arc<Self>, SchemaError> {
        #[expect(clippy::expect_used, reason = "a constant of the right form")]
        let tenant = TenantId::parse("none").expect("a name");
        Self::assemble(&tenant, text, &[])
    }

    fn assemble(
        tenant: &TenantId,
        text: String,
        backends: &[BackendSchema],
    ) -> Result<Arc<Self>, SchemaError> {
        let refused = |reason: String| SchemaError::Refused { tenant: tenant.clone(), reason };
        let (schema, _warnings) = ValidatorSchema::from_cedarschema_str(&text, Extensions::all_available())
            .map_err(|error| refused(error.to_string()))?;
        let actions = schema.action_entities().map_err(|error| refused(error.to_string()))?;
        let shared = shared_entities(tenant, backends.iter().map(|backend| &backend.name));
        let known = entities(shared.clone()).map_err(&refused)?;
        let origin = BUILT.fetch_add(1, Ordering::Relaxed);
        let mut built = BTreeMap::new();
        for backend in backends {
            let uid = names::owned(&names::BACKEND, tenant, backend.name.as_str());
            let resource = Arc::new(Party::new(Arc::new(uid), &known));
            let operations = operations(backend, &schema, &actions, &resource, origin)?;
            built.insert(backend.name.clone(), Backend { operations, groups: backend.operations.clone() });
        }
        Ok(Arc::new(Self {
            origin,
            tenant: tenant.clone(),
            text,
            validator: Validator::new(schema),
            backends: built,
            shared,
            actions: actions.iter().cloned().collect(),
        }))
    }

    /// As [`TenantSchema::build`], but gives `previous` back where nothing changed, so that what
    /// was checked against it need not be checked again.
    ///
    /// # Errors
    /// As [`TenantSchema::build`].
    pub fn rebuild(
        previous: &Arc<Self>,
        tenant: &TenantId,
        backends: &[BackendSchema],
    ) -> Result<Arc<Self>, SchemaError> {
        let is_same = previous.tenant == *tenant
            && previous.backends.len() == backends.len()
            && previous.text.strip_prefix(BASE).is_some_and(|rest| {
                rest.trim_start_matches('\n')
                    == backends.iter().map(|backend| backend.text.as_str()).collect::<Vec<_>>().join("\n")
            })
            && backends.iter().all(|backend| {
                previous.backends.get(&backend.name).is_some_and(|known| known.groups == backend.operations)
            });
        if is_same { Ok(Arc::clone(previous)) } else { Self::build(tenant, backends) }
    }

    /// Whose it is.
    #[must_use]
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    pub(crate) fn origin(&self) -> u64 {
        self.origin
    }

    /// The whole schema in Cedar's schema language.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The tenant's backends.
    pub fn backends(&self) -> impl Iterator<Item = &BackendName> {
        self.backends.keys()
    }

    /// An operation of a backend.
    #[must_use]
    pub fn action(&self, backend: &BackendName, operation: &OperationId) -> Option<&Arc<Action>> {
        self.backends.get(backend)?.operations.get(operation)
    }

    /// Every backend with its operations and their groups.
    pub(crate) fn operations(&self) -> impl Iterator<Item = (&BackendName, &DeclaredOperation)> {
        self.backends
            .iter()
            .flat_map(|(name, backend)| backend.groups.iter().map(move |groups| (name, groups)))
    }

    pub(crate) fn validator(&self) -> &Validator {
        &self.validator
    }

    pub(crate) fn cedar(&self) -> &ValidatorSchema {
        self.validator.schema()
    }
}

/// The action that stands for an operation.
pub(crate) fn action_uid(backend: &BackendName, operation: &str) -> Option<EntityUID> {
    let name: Name = format!("{}::Action", names::namespace(backend)).parse().ok()?;
    Some(EntityUID::from_components(name.into(), Eid::new(operation), None))
}

fn operations(
    backend: &BackendSchema,
    schema: &ValidatorSchema,
    actions: &Entities,
    resource: &Arc<Party>,
    origin: u64,
) -> Result<HashMap<OperationId, Arc<Action>>, SchemaError> {
    let mut found = HashMap::new();
    for DeclaredOperation { id, nullable, sensitive, .. } in &backend.operations {
        let missing = || SchemaError::MissingAction { backend: backend.name.clone(), operation: id.clone() };
        let uid = action_uid(&backend.name, id.as_str()).ok_or_else(missing)?;
        let mut context = Shape::of(schema.context_type(&uid).ok_or_else(missing)?);
        nullable.iter().for_each(|path| context.allow_null(path));
        sensitive.iter().for_each(|path| context.hide(path));
        let action = Action {
            origin,
            context,
            party: Party::new(Arc::new(uid), actions),
            resource: Arc::clone(resource),
        };
        found.insert(id.clone(), Arc::new(action));
    }
    Ok(found)
}

/// A tenant and its backends.
pub(crate) fn shared_entities<'b>(
    tenant: &TenantId,
    backends: impl IntoIterator<Item = &'b BackendName>,
) -> Vec<Entity> {
    let uid = names::tenant(tenant);
    let mut shared = vec![entity(uid.clone(), [], [])];
    shared.extend(backends.into_iter().map(|backend| {
        let own = names::owned(&names::BACKEND, tenant, backend.as_str());
        entity(own, [("tenant", uid.clone().into())], [uid.clone()])
    }));
    shared
}

/// An entity with these attributes and parents.
pub(crate) fn entity(
    uid: EntityUID,
    attributes: impl IntoIterator<Item = (&'static str, Value)>,
    parents: impl IntoIterator<Item = EntityUID>,
) -> Entity {
    let attributes = attributes.into_iter().map(|(name, value)| (name.into(), PartialValue::from(value)));
    Entity::new_with_attr_partial_value(uid, attributes, HashSet::new(), parents.into_iter().collect(), [])
}

/// Entities with their ancestors worked out; the error says what contradicts.
pub(crate) fn entities(all: impl IntoIterator<Item = Entity>) -> Result<Entities, String> {
    Entities::from_entities(
        all,
        None::<&NoEntitiesSchema>,
        TCComputation::ComputeNow,
        Extensions::all_available(),
    )
    .map_err(|error| error.to_string())
}
