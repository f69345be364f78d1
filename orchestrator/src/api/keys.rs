// SPDX-License-Identifier: Apache-2.0
//! API keys over HTTP. No key makes one that can do more than itself.

use super::input::Fields;
use super::problems::Refused;
use super::{Answer, Api, Call, empty, json};
use crate::keys::api::{WantedKey, mint};
use crate::store::{Action, ApiKeyRow, AuditEntry, KeyScope, Role};
use http::StatusCode;
use postern_common::clock;
use postern_common::id::{ApiKeyId, TemplateName, TenantId};
use postern_common::problem::{Code, Problem};
use postern_common::session::Grant;
use serde_json::{Value, json as value};
use std::sync::Arc;

/// The longest label of a key.
const LABEL_CHARACTERS: usize = 128;

fn shown(row: &ApiKeyRow) -> Value {
    value!({
        "key_id": row.id,
        "tenant": row.tenant,
        "role": row.role,
        "label": row.label,
        "operations": row.operations,
        "templates": row.scope.templates,
        "labels": row.scope.labels,
        "created_by": row.created_by,
        "created_at": row.created_at,
    })
}

/// `GET /keys`.
pub(super) async fn list(api: Arc<Api>, call: Call) -> Answer {
    let tenant = call.tenant_filter()?;
    let rows = api.store.keys(tenant.as_ref()).await.map_err(Refused::from)?;
    json(StatusCode::OK, &value!({ "keys": rows.iter().map(shown).collect::<Vec<_>>() }))
}

/// `POST /keys`: `{role, label?, tenant?, operations?, templates?, labels?}`.
///
/// A key of the whole installation makes one for the tenant that it names, or with
/// `"tenant": null` one like itself.
pub(super) async fn create(api: Arc<Api>, call: Call) -> Answer {
    let caller = call.caller()?;
    let mut fields = Fields::read(&call.body)?;
    let role: Option<Role> = role(&mut fields);
    let label = fields.text("label").unwrap_or_default();
    if label.chars().count() > LABEL_CHARACTERS || label.chars().any(char::is_control) {
        fields.mistake("/label", "at most 128 characters, none of them control characters");
    }
    let is_whole = fields.flag("whole_installation").unwrap_or(false);
    let tenant: Option<TenantId> = fields.parsed("tenant");
    let operations: Option<Vec<Grant>> = fields.list("operations");
    let asked = scope(&mut fields);
    let Some(role) = role else {
        fields.finish()?;
        return Err(super::input::mistaken("/role", "is required"));
    };
    fields.finish()?;
    let tenant = match (tenant, is_whole) {
        (Some(_), true) => {
            return Err(super::input::mistaken("/tenant", "a key of the whole installation has none"));
        }
        (None, true) => None,
        (Some(tenant), false) => Some(tenant),
        (None, false) => Some(call.tenant()?),
    };
    may_make(caller, tenant.as_ref(), role)?;
    let operations = within(&api, caller, tenant.as_ref(), operations).await?;
    let scope = super::scope::within(caller, asked)?;
    if let Some(tenant) = &tenant {
        api.configuration.tenant(tenant).await.map_err(Refused::from)?;
    }
    let (actor, now) = (call.actor()?, clock::now());
    let created_by = actor.to_string();
    let wanted = WantedKey { tenant: tenant.clone(), role, label, operations, scope, created_by };
    let minted =
        mint(&api.keys, wanted, now).map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    let audit = AuditEntry::new(now, tenant, Action::KeyCreated, actor);
    let audit = audit.subject(format!("key/{}", minted.row.id)).request(Some(call.request_id.clone()));
    api.store.add_key(&minted.row, &audit).await.map_err(Refused::from)?;
    let mut body = shown(&minted.row);
    if let Some(body) = body.as_object_mut() {
        body.insert("key".to_owned(), Value::from(minted.key.reveal().as_str()));
    }
    json(StatusCode::CREATED, &body)
}

fn role(fields: &mut Fields) -> Option<Role> {
    let text = fields.text("role");
    match text.as_deref().map(str::parse) {
        Some(Ok(role)) => Some(role),
        _ => {
            fields.mistake(
                "/role",
                "expected `admin`, `developer`, `auditor`, `filters:push` or `filters:activate`",
            );
            None
        }
    }
}

/// What the key is to be for, beside its role.
fn scope(fields: &mut Fields) -> KeyScope {
    let templates: Option<Vec<TemplateName>> = fields.list("templates");
    let labels = fields.labels("labels");
    KeyScope {
        templates: templates.map(|all| all.iter().map(ToString::to_string).collect()),
        labels: labels.filter(|labels| !labels.is_empty()),
    }
}

/// No key grants more than it has: not another tenant, not a role that may do more.
fn may_make(caller: &crate::keys::api::Caller, tenant: Option<&TenantId>, role: Role) -> Result<(), Problem> {
    if caller.tenant.is_some() && caller.tenant.as_ref() != tenant {
        return Err(Problem::new(Code::Forbidden, "a key of a tenant makes keys of that tenant only")
            .hint("leave `tenant` and `whole_installation` out"));
    }
    if !caller.role.includes(role) {
        return Err(Problem::new(Code::Forbidden, "a key makes no key that may do more than itself"));
    }
    Ok(())
}

/// The new key's list of operations: within the maker's own, which it inherits if it names none.
async fn within(
    api: &Api,
    caller: &crate::keys::api::Caller,
    tenant: Option<&TenantId>,
    asked: Option<Vec<Grant>>,
) -> Result<Option<Vec<Grant>>, Problem> {
    let Some(asked) = asked else { return Ok(caller.operations.clone()) };
    // The first key of an installation has no list; it may hand out `*`, for somebody must.
    let is_root = caller.tenant.is_none() && caller.role == Role::Admin && caller.operations.is_none();
    if is_root {
        return Ok(Some(asked));
    }
    let refused = |grant: &Grant| {
        Problem::new(Code::Forbidden, format!("this API key may not grant `{grant}`"))
            .hint("name only operations that the key itself may grant")
    };
    let Some(own) = &caller.operations else {
        return asked
            .iter()
            .find(|grant| **grant == Grant::Everything)
            .map_or(Ok(Some(asked.clone())), |grant| Err(refused(grant)));
    };
    for grant in &asked {
        let is_covered = match tenant {
            Some(tenant) => {
                let tenant = api.configuration.tenant(tenant).await.map_err(Refused::from)?;
                tenant.catalogue.covers(own, grant)
            }
            None => own.contains(grant),
        };
        if !is_covered {
            return Err(refused(grant));
        }
    }
    Ok(Some(asked))
}

/// `DELETE /keys/{id}`.
pub(super) async fn remove(api: Arc<Api>, call: Call) -> Answer {
    let id: ApiKeyId = call.path("id")?;
    let missing =
        || Problem::new(Code::NotFound, format!("there is no API key `{id}`")).hint("`GET /keys` lists them");
    let row = api.store.key(&id).await.map_err(Refused::from)?.ok_or_else(missing)?;
    let is_visible = match &call.caller()?.tenant {
        Some(own) => row.tenant.as_ref() == Some(own),
        None => true,
    };
    if !is_visible {
        return Err(missing());
    }
    let audit = AuditEntry::new(clock::now(), row.tenant, Action::KeyRemoved, call.actor()?);
    let audit = audit.subject(format!("key/{id}")).request(Some(call.request_id.clone()));
    if !api.store.remove_key(&id, &audit).await.map_err(Refused::from)? {
        return Err(missing());
    }
    Ok(empty(StatusCode::NO_CONTENT))
}
