// SPDX-License-Identifier: Apache-2.0
//! Answers whole cases given as text: a schema, policies, entities and requests of any kind.
//!
//! For harnesses that compare Postern with Cedar. Nothing of a tenant is added: no baseline, no
//! schema of ours. The cases go through the same index and the same answer as the gateway's.

use crate::compile::{Compiled, CompiledPolicy, identity};
use crate::decide::Question;
use crate::entities::World;
use crate::party::Party;
use crate::request::RequestContext;
use crate::schema::TenantSchema;
use crate::set::TenantPolicies;
use cedar_policy_core::ast::{Context, Eid, EntityType, EntityUID, PolicyID, PolicySet, RequestSchema as _};
use cedar_policy_core::entities::{
    ContextJsonParser, Entities, EntityJsonParser, TCComputation, json::NullContextSchema,
};
use cedar_policy_core::extensions::Extensions;
use cedar_policy_core::parser;
use cedar_policy_core::validator::{CoreSchema, ValidationMode, ValidatorSchema, context_schema_for_action};
use postern_common::decision::Verdict;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A case: what is known, and what is asked.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Comes back with the answer.
    pub id: serde_json::Value,
    /// In Cedar's schema language.
    pub schema: String,
    /// In Cedar.
    pub policies: String,
    /// In Cedar's JSON.
    pub entities: serde_json::Value,
    /// Each is answered by itself.
    pub requests: Vec<CaseRequest>,
}

/// A request of a case.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseRequest {
    /// Who.
    pub principal: CaseEntity,
    /// What.
    pub action: CaseEntity,
    /// To what.
    pub resource: CaseEntity,
    /// In Cedar's JSON.
    #[serde(default = "empty")]
    pub context: serde_json::Value,
}

fn empty() -> serde_json::Value {
    serde_json::Value::Object(serde_json::Map::new())
}

/// An entity by type and id.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseEntity {
    /// Its type, with its namespace.
    #[serde(rename = "type")]
    pub of_type: String,
    /// Its id.
    pub id: String,
}

/// The answers to a case.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CaseAnswer {
    /// The case's.
    pub id: serde_json::Value,
    /// Whether the policies pass strict validation.
    pub validates: bool,
    /// Why not.
    pub validation_errors: Vec<String>,
    /// One for each request.
    pub results: Vec<CaseResult>,
}

/// The answer to one request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CaseResult {
    /// Cedar's: `allow` or `deny`.
    pub decision: &'static str,
    /// Ours, which is stricter.
    pub effective: &'static str,
    /// Policies that determine Cedar's.
    pub reasons: Vec<String>,
    /// Policies that could not be evaluated.
    pub errors: Vec<String>,
}

/// The case cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{part} cannot be read: {reason}")]
pub struct CaseError {
    /// Which part of it.
    pub part: &'static str,
    /// Why, in Cedar's words.
    pub reason: String,
}

fn unreadable<E: ToString>(part: &'static str) -> impl Fn(E) -> CaseError {
    move |error| CaseError { part, reason: error.to_string() }
}

/// Answers a case.
///
/// # Errors
/// [`CaseError`] names the part that cannot be read; a request that only does not fit the schema
/// is answered, and denied.
pub fn authorize(case: &Case) -> Result<CaseAnswer, CaseError> {
    let schema = TenantSchema::alone(case.schema.clone()).map_err(unreadable("the schema"))?;
    let set = named(&parser::parse_policyset(&case.policies).map_err(unreadable("the policies"))?)?;
    let validation = schema.validator().validate(&set, ValidationMode::Strict);
    let entities = entities(schema.cedar(), &case.entities)?;
    let policies = TenantPolicies::of_cedar(&schema, &set).map_err(unreadable("the policies"))?;
    let known = Known { policies, entities: World::new(entities) };
    let results = case.requests.iter().map(|request| known.answer(request)).collect::<Result<_, _>>()?;
    Ok(CaseAnswer {
        id: case.id.clone(),
        validates: validation.validation_passed(),
        validation_errors: validation.validation_errors().map(ToString::to_string).collect(),
        results,
    })
}

/// What the requests of a case are answered from.
#[derive(Debug)]
struct Known {
    policies: TenantPolicies,
    entities: World,
}

impl Known {
    fn answer(&self, request: &CaseRequest) -> Result<CaseResult, CaseError> {
        let schema = self.policies.schema.cedar();
        let actions = self.entities.with_actions(&self.policies.schema.actions);
        let party = |entity: &CaseEntity| {
            let of_type: EntityType = entity.of_type.parse().map_err(unreadable("a request"))?;
            let uid = EntityUID::from_components(of_type, Eid::new(entity.id.as_str()), None);
            Ok::<_, CaseError>(Party::new(Arc::new(uid), actions))
        };
        let (principal, action, resource) =
            (party(&request.principal)?, party(&request.action)?, party(&request.resource)?);
        let (context, fits) = context(schema, action.uid(), &request.context)?;
        let question = Question {
            principal: &principal,
            action: &action,
            resource: &resource,
            context: &RequestContext::timeless(context.clone()),
            world: &self.entities,
        };
        let conforms = fits
            && CoreSchema::new(schema)
                .validate_request(&question.request(&context), Extensions::all_available())
                .is_ok();
        let decision = self.policies.answer(&question);
        let cedar = decision.cedar().ok_or_else(|| unreadable("a request")("no policy was asked"))?;
        Ok(CaseResult {
            decision: word(cedar.is_allowed),
            effective: word(conforms && decision.verdict() == Verdict::Allow),
            reasons: cedar.reasons,
            errors: cedar.errors,
        })
    }
}

fn word(is_allowed: bool) -> &'static str {
    if is_allowed { "allow" } else { "deny" }
}

/// The same set with `@id`s for ids, where there are any.
fn named(set: &PolicySet) -> Result<PolicySet, CaseError> {
    let mut renamed = PolicySet::new();
    for template in set.templates() {
        let id = identity(template.annotations()).unwrap_or_else(|| template.id().as_ref());
        let template = template.new_id(PolicyID::from_string(id));
        renamed.add_template(template).map_err(unreadable("the policies"))?;
    }
    for policy in set.policies() {
        let id = identity(policy.annotations()).unwrap_or_else(|| policy.id().as_ref());
        renamed.add(policy.new_id(PolicyID::from_string(id))).map_err(unreadable("the policies"))?;
    }
    Ok(renamed)
}

fn entities(schema: &ValidatorSchema, json: &serde_json::Value) -> Result<Entities, CaseError> {
    let schema = CoreSchema::new(schema);
    EntityJsonParser::new(Some(&schema), Extensions::all_available(), TCComputation::ComputeNow)
        .from_json_value(json.clone())
        .map_err(unreadable("the entities"))
}

/// The context, and whether it fits the schema.
fn context(
    schema: &ValidatorSchema,
    action: &EntityUID,
    json: &serde_json::Value,
) -> Result<(Context, bool), CaseError> {
    let extensions = Extensions::all_available();
    let shape = context_schema_for_action(schema, action);
    let typed = shape
        .as_ref()
        .and_then(|shape| ContextJsonParser::new(Some(shape), extensions).from_json_value(json.clone()).ok());
    if let Some(context) = typed {
        return Ok((context, true));
    }
    let untyped =
        ContextJsonParser::new(None::<&NullContextSchema>, extensions).from_json_value(json.clone());
    untyped.map(|context| (context, false)).map_err(unreadable("a request's context"))
}

impl TenantPolicies {
    /// A set of any policies, held against nothing.
    ///
    /// # Errors
    /// The id that stands twice.
    pub(crate) fn of_cedar(schema: &Arc<TenantSchema>, set: &PolicySet) -> Result<Self, String> {
        let mut policies = Self::empty(schema);
        for policy in set.policies() {
            let compiled = Compiled::Policy(Arc::new(CompiledPolicy::new(policy.clone())));
            if !policies.put_in(&Arc::new(compiled)) {
                return Err(format!("`{}` is the id of two policies", policy.id()));
            }
        }
        Ok(policies)
    }
}

#[cfg(test)]
mod tests;
