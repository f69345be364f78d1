// SPDX-License-Identifier: Apache-2.0
//! Keys that are for some sandboxes and templates only: what a call names is held against its key.

use super::problems::{Refused, beyond_rights};
use super::{Api, Call};
use crate::keys::api::Caller;
use crate::operations::Catalogue;
use crate::rights::{SandboxFacts, beyond};
use crate::store::{KeyScope, NewSandbox, SandboxRow, SnapshotRow};
use crate::tenant::Tenant;
use postern_common::folder::TenantFiles;
use postern_common::problem::{Code, Problem};
use postern_common::session::Grant;
use std::collections::BTreeMap;

/// The policy that keeps a key from sandboxes which may call more than it may grant.
const BEYOND: &str = "postern-key-operations";

/// Whether the call's key may do this with a sandbox that there is.
pub(super) async fn sandbox(api: &Api, call: &Call, row: &SandboxRow) -> Result<(), Problem> {
    let caller = call.caller()?;
    // Only a key with operations of its own asks what they cover.
    let tenant = match caller.operations {
        Some(_) => Some(api.configuration.tenant(&row.new.tenant).await.map_err(Refused::from)?),
        None => None,
    };
    let none = Catalogue::default();
    let catalogue = tenant.as_ref().map_or(&none, |tenant| &tenant.catalogue);
    let judged = api.rights.sandbox(caller, call.operation, &SandboxFacts::of(row, catalogue));
    judged.map_err(|denied| match beyond(caller, &row.new.operations, catalogue) {
        // No key gets more out of a sandbox than it may give to one: who acts through it acts with
        // its operations, whoever made it.
        Some(beyond) if denied.policy.as_deref() == Some(BEYOND) => {
            let id = &row.new.id;
            let detail = format!("sandbox `{id}` may call `{beyond}`, which this API key may not grant");
            Problem::new(Code::Forbidden, detail).hint("use a key whose `operations` hold it")
        }
        _ => beyond_rights(&denied),
    })
}

/// Whether it may make this one.
pub(super) fn new_sandbox(api: &Api, call: &Call, tenant: &Tenant, new: &NewSandbox) -> Result<(), Problem> {
    let facts = SandboxFacts {
        tenant: &new.tenant,
        template: new.template.as_str(),
        labels: &new.labels,
        operations: &new.operations,
        catalogue: &tenant.catalogue,
    };
    let judged = api.rights.sandbox(call.caller()?, call.operation, &facts);
    judged.map_err(|denied| beyond_rights(&denied))
}

/// Whether it sees this sandbox in a list.
pub(super) fn sees(caller: &Caller, row: &SandboxRow) -> bool {
    let KeyScope { templates, labels } = &caller.scope;
    let has = |(name, value): (&String, &String)| row.new.labels.get(name) == Some(value);
    templates.as_ref().is_none_or(|all| all.iter().any(|name| name == row.new.template.as_str()))
        && labels.as_ref().is_none_or(|labels| labels.iter().all(has))
}

/// Whether it sees this snapshot: as it would see the sandbox that it was taken of.
pub(super) fn sees_snapshot(caller: &Caller, row: &SnapshotRow) -> bool {
    let KeyScope { templates, labels } = &caller.scope;
    let has = |(name, value): (&String, &String)| row.labels.get(name) == Some(value);
    templates.as_ref().is_none_or(|all| all.iter().any(|name| name == row.template.as_str()))
        && labels.as_ref().is_none_or(|labels| labels.iter().all(has))
}

/// Whether it may put these files' templates.
pub(super) async fn templates(api: &Api, call: &Call, files: &TenantFiles) -> Result<(), Problem> {
    let (caller, name) = (call.caller()?, call.tenant()?);
    if caller.operations.is_none() && caller.scope.templates.is_none() {
        return Ok(());
    }
    let tenant = api.configuration.tenant(&name).await.map_err(Refused::from)?;
    for (template, file) in &files.templates {
        let grants = (file.operations.as_slice(), &tenant.catalogue);
        let judged = api.rights.template(caller, call.operation, (&name, template.as_str()), grants);
        judged.map_err(|denied| beyond_rights(&denied))?;
    }
    Ok(())
}

/// Whether it may remove a template.
pub(super) fn removed_template(api: &Api, call: &Call, template: &str) -> Result<(), Problem> {
    let (name, none) = (call.tenant()?, Catalogue::default());
    let grants: &[Grant] = &[];
    let judged = api.rights.template(call.caller()?, call.operation, (&name, template), (grants, &none));
    judged.map_err(|denied| beyond_rights(&denied))
}

/// The scope of a key that is made: within its maker's, which it inherits where it names none.
pub(super) fn within(caller: &Caller, asked: KeyScope) -> Result<KeyScope, Problem> {
    let KeyScope { templates: own_templates, labels: own_labels } = &caller.scope;
    let templates = match (asked.templates, own_templates) {
        (None, own) => own.clone(),
        (Some(asked), None) => Some(asked),
        (Some(asked), Some(own)) => {
            if let Some(beyond) = asked.iter().find(|name| !own.contains(name)) {
                let detail = format!("this API key is not for the template `{beyond}`");
                return Err(Problem::new(Code::Forbidden, detail)
                    .hint("name only templates that the key itself is for"));
            }
            Some(asked)
        }
    };
    let mut labels: Option<BTreeMap<String, String>> = own_labels.clone();
    for (name, value) in asked.labels.into_iter().flatten() {
        let all = labels.get_or_insert_default();
        match all.get(&name) {
            Some(own) if *own != value => {
                let detail = format!("this API key is for sandboxes with the label `{name}` `{own}` only");
                return Err(Problem::new(Code::Forbidden, detail)
                    .hint("leave the label out: the new key inherits it"));
            }
            _ => drop(all.insert(name, value)),
        }
    }
    Ok(KeyScope { templates, labels })
}
