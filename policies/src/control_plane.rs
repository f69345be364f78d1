// SPDX-License-Identifier: Apache-2.0
//! Who may call what of the REST API, decided by the same engine as requests of sandboxes.
//!
//! The policies are shipped (`control.cedar`); which operations there are is the schema's
//! to say, and one that it does not name is refused. What keys and sandboxes are is the caller's.

use crate::compile::{Author, compile};
use crate::decide::{Decision, Question};
use crate::entities::World;
use crate::mistake::{Mistake, Place};
use crate::party::Party;
use crate::request::RequestContext;
use crate::schema::{TenantSchema, entities, entity};
use crate::set::TenantPolicies;
use crate::source::pieces;
use cedar_policy_core::ast::{Context, Eid, Entity, EntityType, EntityUID, Value};
use postern_common::id::TenantId;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};

/// What its policies may speak of.
const SCHEMA: &str = include_str!("../control.cedarschema");
/// The policies.
const POLICIES: &str = include_str!("../control.cedar");
/// Each role, and the roles that it lies in: who has it may do as much as who has those.
const ROLES: [(&str, &[&str]); 5] = [
    ("admin", &["developer", "filters:activate"]),
    ("developer", &["auditor", "filters:push"]),
    ("auditor", &[]),
    ("filters:push", &[]),
    ("filters:activate", &[]),
];

/// Who calls.
#[derive(Debug, Clone, Copy)]
pub struct KeyFacts<'a> {
    /// The key's id.
    pub id: &'a str,
    /// Its tenant; `None`: the whole installation.
    pub tenant: Option<&'a TenantId>,
    /// `admin`, `developer`, `auditor`, or one right alone: `filters:push`, `filters:activate`.
    pub role: &'a str,
    /// The templates that it is for; `None`: every one.
    pub templates: Option<&'a [String]>,
    /// The labels that its sandboxes must have; `None`: none.
    pub labels: Option<&'a BTreeMap<String, String>>,
}

/// What a call is about.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// Nothing that was looked up yet.
    Installation,
    /// A sandbox that there is or is to be.
    Sandbox {
        /// Whose.
        tenant: &'a TenantId,
        /// What it is made of.
        template: &'a str,
        /// Its labels.
        labels: &'a BTreeMap<String, String>,
        /// Whether it may call more than the key may grant.
        is_beyond_key: bool,
    },
    /// A template that is put or removed.
    Template {
        /// Whose.
        tenant: &'a TenantId,
        /// Its name.
        name: &'a str,
        /// Whether it grants more than the key may.
        is_beyond_key: bool,
    },
}

/// A call that is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct NotAllowed {
    /// The forbid that decided; `None` if nothing permits it, so that the role is too low.
    pub policy: Option<String>,
    /// Its reason.
    pub reason: String,
}

/// The policies of the control plane.
#[derive(Debug)]
pub struct ControlPlane {
    policies: TenantPolicies,
    actions: HashMap<String, Party>,
    roles: Vec<Entity>,
}

macro_rules! types {
    ($($name:ident = $text:literal;)*) => {$(
        static $name: LazyLock<Option<EntityType>> = LazyLock::new(|| $text.parse().ok());
    )*};
}

types! {
    TENANT = "Postern::Tenant";
    ROLE = "Postern::Role";
    KEY = "Postern::ApiKey";
    INSTALLATION = "Postern::Installation";
    SANDBOX = "Postern::Sandbox";
    TEMPLATE = "Postern::Template";
}

fn uid(of_type: &LazyLock<Option<EntityType>>, id: &str) -> Option<EntityUID> {
    Some(EntityUID::from_components((**of_type).clone()?, Eid::new(id), None))
}

impl ControlPlane {
    /// The policies that are shipped.
    ///
    /// # Errors
    /// Only if what is shipped is broken.
    pub fn shipped() -> Result<Self, Vec<Mistake>> {
        let place = Place { file: "control.cedar", text: POLICIES };
        let broken = |reason: String| vec![place.mistake(0..0, reason, None)];
        let schema = TenantSchema::alone(SCHEMA.to_owned()).map_err(|error| broken(error.to_string()))?;
        let mut policies = TenantPolicies::empty(&schema);
        for piece in pieces(POLICIES) {
            let compiled = compile(&schema, Author::Postern, piece.text).map_err(|findings| {
                let told = |finding: &crate::compile::Finding| {
                    let range = piece.offset + finding.range.start..piece.offset + finding.range.end;
                    place.mistake(range, finding.message.clone(), finding.help.clone())
                };
                findings.iter().map(told).collect::<Vec<_>>()
            })?;
            policies.put_in(&Arc::new(compiled));
        }
        let known = entities(schema.actions.iter().cloned()).map_err(&broken)?;
        let named = |action: &Entity| {
            let party = Party::new(Arc::new(action.uid().clone()), &known);
            (AsRef::<str>::as_ref(action.uid().eid()).to_owned(), party)
        };
        let actions = schema.actions.iter().map(named).collect();
        let incomplete = || broken("a type of the schema is missing".to_owned());
        let mut roles = Vec::new();
        for (role, within) in ROLES {
            let within = within.iter().map(|role| uid(&ROLE, role)).collect::<Option<Vec<_>>>();
            let role = uid(&ROLE, role).ok_or_else(incomplete)?;
            roles.push(entity(role, [], within.ok_or_else(incomplete)?));
        }
        Ok(Self { policies, actions, roles })
    }

    /// Whether a key may call an operation about something.
    ///
    /// Cost: some tens of µs.
    ///
    /// # Errors
    /// [`NotAllowed`] with the reason; also for an operation that the schema does not name.
    pub fn decide(&self, key: KeyFacts<'_>, operation: &str, target: Target<'_>) -> Result<(), NotAllowed> {
        let unknown = || NotAllowed { policy: None, reason: "no policy permits it".to_owned() };
        let action = self.actions.get(operation).ok_or_else(unknown)?;
        let decision = self.ask(key, action, target).ok_or_else(unknown)?;
        if decision.is_allowed() {
            return Ok(());
        }
        let decided = decision.determining().into_iter().next();
        Err(decided.map_or_else(unknown, |part| NotAllowed {
            reason: part.reason.unwrap_or_else(|| format!("policy `{}` forbids it", part.id)),
            policy: Some(part.id),
        }))
    }

    /// The operations that the schema names.
    pub fn operations(&self) -> impl Iterator<Item = &str> {
        self.actions.keys().map(String::as_str)
    }

    fn ask(&self, key: KeyFacts<'_>, action: &Party, target: Target<'_>) -> Option<Decision> {
        let principal = key_entity(key)?;
        let principal_uid = Arc::new(principal.uid().clone());
        let resource = target_entity(target)?;
        let resource_uid = Arc::new(resource.uid().clone());
        let world = entities(self.roles.iter().cloned().chain([principal, resource])).ok()?;
        let principal = Party::new(principal_uid, &world);
        let resource = Party::new(resource_uid, &world);
        Some(self.policies.answer(&Question {
            principal: &principal,
            action,
            resource: &resource,
            context: &RequestContext::timeless(Context::empty()),
            world: &World::new(world),
        }))
    }
}

fn key_entity(key: KeyFacts<'_>) -> Option<Entity> {
    let mut attributes: Vec<(&'static str, Value)> = Vec::new();
    if let Some(tenant) = key.tenant {
        attributes.push(("tenant", uid(&TENANT, tenant.as_str())?.into()));
    }
    if let Some(templates) = key.templates {
        attributes.push(("templates", texts(templates.iter().cloned())));
    }
    if let Some(labels) = key.labels {
        attributes.push(("labels", pairs(labels)));
    }
    Some(entity(uid(&KEY, key.id)?, attributes, [uid(&ROLE, key.role)?]))
}

fn target_entity(target: Target<'_>) -> Option<Entity> {
    Some(match target {
        Target::Installation => entity(uid(&INSTALLATION, "this")?, [], []),
        Target::Sandbox { tenant, template, labels, is_beyond_key } => {
            let attributes: [(&'static str, Value); 4] = [
                ("tenant", uid(&TENANT, tenant.as_str())?.into()),
                ("template", template.into()),
                ("labels", pairs(labels)),
                ("beyondKey", is_beyond_key.into()),
            ];
            entity(uid(&SANDBOX, "it")?, attributes, [])
        }
        Target::Template { tenant, name, is_beyond_key } => {
            let attributes: [(&'static str, Value); 3] = [
                ("tenant", uid(&TENANT, tenant.as_str())?.into()),
                ("name", name.into()),
                ("beyondKey", is_beyond_key.into()),
            ];
            entity(uid(&TEMPLATE, name)?, attributes, [])
        }
    })
}

fn texts(texts: impl Iterator<Item = String>) -> Value {
    Value::set(texts.map(|text| text.as_str().into()), None)
}

/// `name=value`; a name that holds `=` could pass for another, so it is escaped.
fn pairs(labels: &BTreeMap<String, String>) -> Value {
    texts(
        labels
            .iter()
            .map(|(name, value)| format!("{}={value}", name.replace('%', "%25").replace('=', "%3D"))),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key<'a>(role: &'a str, tenant: Option<&'a TenantId>) -> KeyFacts<'a> {
        KeyFacts { id: "abc", tenant, role, templates: None, labels: None }
    }

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn plane() -> ControlPlane {
        ControlPlane::shipped().unwrap_or_else(|mistakes| panic!("{}", crate::fixture::told(&mistakes)))
    }

    #[test]
    fn each_role_may_do_what_the_one_below_it_may_and_more() {
        let (plane, acme) = (plane(), "acme".parse().expect("a name"));
        for (operation, least) in [
            ("getSandbox", "auditor"),
            ("diffPolicies", "auditor"),
            ("exec", "developer"),
            ("putPolicySet", "admin"),
            ("apply", "admin"),
        ] {
            for role in ["auditor", "developer", "admin"] {
                let rank =
                    |role: &str| ["auditor", "developer", "admin"].iter().position(|known| *known == role);
                let answer = plane.decide(key(role, Some(&acme)), operation, Target::Installation);
                assert_eq!(answer.is_ok(), rank(role) >= rank(least), "{role} {operation}");
            }
        }
        let create = |tenant| plane.decide(key("admin", tenant), "createTenant", Target::Installation);
        assert!(create(Some(&acme)).is_err() && create(None).is_ok());
        assert!(plane.decide(key("admin", None), "unheardOf", Target::Installation).is_err());
        assert!(plane.decide(key("read", None), "getSandbox", Target::Installation).is_err(), "no such role");
    }

    #[test]
    fn pushing_and_activating_filters_are_rights_that_a_key_may_have_alone() {
        let (plane, acme) = (plane(), "acme".parse().expect("a name"));
        for (role, allowed) in [
            ("filters:push", &["pushFilter"][..]),
            ("filters:activate", &["activateFilter", "rollBackFilter"]),
            ("auditor", &[]),
            ("developer", &["pushFilter"]),
            ("admin", &["pushFilter", "activateFilter", "rollBackFilter", "putFilter", "deleteFilter"]),
        ] {
            let may =
                |operation| plane.decide(key(role, Some(&acme)), operation, Target::Installation).is_ok();
            for operation in ["pushFilter", "activateFilter", "rollBackFilter", "putFilter", "deleteFilter"] {
                assert_eq!(may(operation), allowed.contains(&operation), "{role} {operation}");
            }
            for operation in ["listFilters", "getFilter", "listFilterVersions", "readFilterLog", "getBackend"]
            {
                assert!(may(operation), "{role} {operation}");
            }
        }
        // Such a key does nothing else.
        for role in ["filters:push", "filters:activate"] {
            let others = plane.operations().filter(|operation| !operation.contains("ilter"));
            for operation in others.filter(|operation| !matches!(*operation, "listBackends" | "getBackend")) {
                let decided = plane.decide(key(role, Some(&acme)), operation, Target::Installation);
                assert!(decided.is_err(), "{role} {operation}");
            }
        }
    }

    #[test]
    fn a_key_stays_within_its_tenant_templates_labels_and_operations() {
        let plane = plane();
        let (acme, rival): (TenantId, TenantId) =
            ("acme".parse().expect("a name"), "rival".parse().expect("a name"));
        let (team, none) = (labels(&[("team", "a"), ("more", "b")]), labels(&[]));
        let sandbox = |tenant, template, labels, is_beyond_key| Target::Sandbox {
            tenant,
            template,
            labels,
            is_beyond_key,
        };
        let own = labels(&[("team", "a")]);
        let templates = ["small".to_owned()];
        let narrow =
            KeyFacts { templates: Some(&templates), labels: Some(&own), ..key("developer", Some(&acme)) };
        let told = |key, target| plane.decide(key, "exec", target).map_err(|denied| denied.policy);
        let denied = |id: &str| Err(Some(id.to_owned()));
        assert_eq!(told(narrow, sandbox(&acme, "small", &team, false)), Ok(()));
        assert_eq!(told(narrow, sandbox(&rival, "small", &team, false)), denied("postern-key-tenant"));
        assert_eq!(told(narrow, sandbox(&acme, "large", &team, false)), denied("postern-key-template"));
        assert_eq!(told(narrow, sandbox(&acme, "small", &none, false)), denied("postern-key-labels"));
        assert_eq!(told(narrow, sandbox(&acme, "small", &team, true)), denied("postern-key-operations"));
        // Whatever it may do with a sandbox that may call more than the key, nothing happens in there.
        for operation in [
            "createSandbox",
            "refreshToken",
            "exec",
            "signalProcess",
            "writeStdin",
            "writeSandboxFile",
            "removeSandboxFile",
            "makeFolder",
            "moveSandboxFile",
            "writeTree",
            "openTerminal",
            "createTicket",
            "openPort",
        ] {
            let tried = |is_beyond_key| {
                let target = sandbox(&acme, "small", &team, is_beyond_key);
                plane.decide(narrow, operation, target).map_err(|denied| denied.policy)
            };
            assert_eq!(tried(true), denied("postern-key-operations"), "{operation}");
            assert_eq!(tried(false), Ok(()), "{operation}");
        }
        let odd = labels(&[("team=a", ""), ("team", "b")]);
        assert_eq!(told(narrow, sandbox(&acme, "small", &odd, false)), denied("postern-key-labels"));
        let survey =
            plane.decide(narrow, "listDecisions", Target::Installation).map_err(|denied| denied.policy);
        assert_eq!(survey, denied("postern-key-survey"));
        let admin = KeyFacts { templates: Some(&templates), ..key("admin", Some(&acme)) };
        let put = |name, is_beyond_key| {
            let target = Target::Template { tenant: &acme, name, is_beyond_key };
            plane.decide(admin, "putTemplate", target).map_err(|denied| denied.policy)
        };
        assert_eq!(put("small", false), Ok(()));
        assert_eq!(put("large", false), denied("postern-key-own-templates"));
        assert_eq!(put("small", true), denied("postern-key-grants"));
    }
}
