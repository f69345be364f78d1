// SPDX-License-Identifier: Apache-2.0
//! What an API key may do: the shipped policies of the control plane, asked about calls, sandboxes
//! and templates. What a grant covers is `operations`' to say; policies see the answer.

use crate::keys::api::Caller;
use crate::operations::Catalogue;
use crate::store::{Role, SandboxRow};
use postern_common::id::TenantId;
use postern_common::session::Grant;
use postern_policies::{ControlPlane, KeyFacts, NotAllowed, Target};
use std::collections::BTreeMap;

/// The policies, ready to be asked.
#[derive(Debug)]
pub(crate) struct Rights(ControlPlane);

impl Rights {
    /// The policies that are shipped.
    ///
    /// # Errors
    /// What is wrong with them, which no release should be.
    pub(crate) fn shipped() -> Result<Self, String> {
        let told = |mistakes: Vec<postern_policies::Mistake>| {
            mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        ControlPlane::shipped().map(Self).map_err(told)
    }

    /// Whether a caller may call an operation at all.
    ///
    /// # Errors
    /// [`NotAllowed`].
    pub(crate) fn call(&self, caller: &Caller, operation: &str) -> Result<(), NotAllowed> {
        self.0.decide(facts(caller), operation, Target::Installation)
    }

    /// Whether a caller may do this with a sandbox.
    ///
    /// # Errors
    /// [`NotAllowed`].
    pub(crate) fn sandbox(
        &self,
        caller: &Caller,
        operation: &str,
        sandbox: &SandboxFacts<'_>,
    ) -> Result<(), NotAllowed> {
        let target = Target::Sandbox {
            tenant: sandbox.tenant,
            template: sandbox.template,
            labels: sandbox.labels,
            is_beyond_key: beyond(caller, sandbox.operations, sandbox.catalogue).is_some(),
        };
        self.0.decide(facts(caller), operation, target)
    }

    /// Whether a caller may put or remove a template that grants these operations.
    ///
    /// # Errors
    /// [`NotAllowed`].
    pub(crate) fn template(
        &self,
        caller: &Caller,
        operation: &str,
        (tenant, name): (&TenantId, &str),
        (grants, catalogue): (&[Grant], &Catalogue),
    ) -> Result<(), NotAllowed> {
        // What a template says is spelled out for each sandbox, so `*` in it gives no more.
        let is_beyond_key = caller.operations.is_some() && beyond(caller, grants, catalogue).is_some();
        self.0.decide(facts(caller), operation, Target::Template { tenant, name, is_beyond_key })
    }

    /// The operations that the policies know.
    #[cfg(test)]
    pub(crate) fn operations(&self) -> Vec<&str> {
        self.0.operations().collect()
    }
}

/// A sandbox as rights see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SandboxFacts<'a> {
    pub(crate) tenant: &'a TenantId,
    pub(crate) template: &'a str,
    pub(crate) labels: &'a BTreeMap<String, String>,
    /// What its session may call.
    pub(crate) operations: &'a [Grant],
    pub(crate) catalogue: &'a Catalogue,
}

impl<'a> SandboxFacts<'a> {
    /// A sandbox that there is.
    pub(crate) fn of(row: &'a SandboxRow, catalogue: &'a Catalogue) -> Self {
        Self {
            tenant: &row.new.tenant,
            template: row.new.template.as_str(),
            labels: &row.new.labels,
            operations: &row.new.operations,
            catalogue,
        }
    }
}

/// The first grant of a sandbox that a caller may not give. A key without a list of its own gives
/// everything but `*`, which only the installation's first may hand out.
pub(crate) fn beyond<'g>(caller: &Caller, grants: &'g [Grant], catalogue: &Catalogue) -> Option<&'g Grant> {
    let is_first = caller.tenant.is_none() && caller.role == Role::Admin;
    let may_give = |grant: &Grant| match &caller.operations {
        Some(own) => catalogue.covers(own, grant),
        None => *grant != Grant::Everything || is_first,
    };
    grants.iter().find(|grant| !may_give(grant))
}

fn facts(caller: &Caller) -> KeyFacts<'_> {
    KeyFacts {
        id: caller.key.as_str(),
        tenant: caller.tenant.as_ref(),
        role: caller.role.as_str(),
        templates: caller.scope.templates.as_deref(),
        labels: caller.scope.labels.as_ref(),
    }
}
