// SPDX-License-Identifier: Apache-2.0
//! Tenants over HTTP.

use super::input::Fields;
use super::problems::Refused;
use super::{Answer, Api, Call, empty, json};
use crate::configuration::{ConfigurationError, DEFAULT_TENANT};
use crate::store::{Action, AuditEntry, MadeTenant, Owner, RemovedTenant, TenantRow};
use http::StatusCode;
use postern_common::clock;
use postern_common::id::TenantId;
use postern_common::problem::{Code, Problem};
use serde_json::{Value, json as value};
use std::sync::Arc;

fn shown(row: &TenantRow) -> Value {
    let owner = match row.owner {
        Owner::Api => "api",
        Owner::Folder(_) => "folder",
    };
    value!({ "name": row.name, "owner": owner, "version": row.version, "created_at": row.created_at })
}

/// `GET /tenants`: the key's own, or all.
pub(super) async fn list(api: Arc<Api>, call: Call) -> Answer {
    let own = call.caller()?.tenant.clone();
    let rows = api.store.tenants().await.map_err(Refused::from)?;
    let visible = rows.iter().filter(|row| own.as_ref().is_none_or(|own| *own == row.name));
    json(StatusCode::OK, &value!({ "tenants": visible.map(shown).collect::<Vec<_>>() }))
}

/// `POST /tenants`: `{name}`.
pub(super) async fn create(api: Arc<Api>, call: Call) -> Answer {
    let mut fields = Fields::read(&call.body)?;
    let name: Option<TenantId> = fields.required("name");
    fields.finish()?;
    let Some(name) = name else { return Err(super::input::mistaken("/name", "is required")) };
    let made = api.configuration.make(&name, &Owner::Api, call.actor()?, Some(call.request_id.clone())).await;
    match made.map_err(Refused::from)? {
        MadeTenant::Made => {}
        MadeTenant::Exists => {
            return Err(Problem::new(Code::StateConflict, format!("there is a tenant `{name}` already")));
        }
        MadeTenant::Retired => return Err(Refused::from(ConfigurationError::Retired(name)).into()),
    }
    let tenant = api.configuration.tenant(&name).await.map_err(Refused::from)?;
    json(StatusCode::CREATED, &shown(&tenant.row))
}

/// `GET /tenants/{name}`.
pub(super) async fn show(api: Arc<Api>, call: Call) -> Answer {
    let name: TenantId = call.path("name")?;
    let missing = || Problem::new(Code::NotFound, format!("there is no tenant `{name}`"));
    if call.caller()?.tenant.as_ref().is_some_and(|own| *own != name) {
        return Err(missing());
    }
    let row = api.store.tenant(&name).await.map_err(Refused::from)?.ok_or_else(missing)?;
    json(StatusCode::OK, &shown(&row))
}

/// `DELETE /tenants/{name}`. Its name is never given again; its files are erased soon after.
pub(super) async fn remove(api: Arc<Api>, call: Call) -> Answer {
    let name: TenantId = call.path("name")?;
    if name.as_str() == DEFAULT_TENANT {
        return Err(Problem::new(Code::StateConflict, "the tenant `default` is always there"));
    }
    let audit = AuditEntry::new(clock::now(), Some(name.clone()), Action::TenantRemoved, call.actor()?);
    let audit = audit.request(Some(call.request_id.clone()));
    match api.configuration.remove(&name, audit).await.map_err(Refused::from)? {
        RemovedTenant::Removed => {
            api.retention.begin();
            Ok(empty(StatusCode::NO_CONTENT))
        }
        RemovedTenant::Unknown => Err(Problem::new(Code::NotFound, format!("there is no tenant `{name}`"))),
        RemovedTenant::Lives(live) => {
            Err(Problem::new(Code::StateConflict, format!("tenant `{name}` has {live} live sandboxes"))
                .hint("destroy them first: `GET /sandbox?tenant=…`"))
        }
        RemovedTenant::Held(held) => Err(Problem::new(
            Code::StateConflict,
            format!("{held} users of tenant `{name}` are held, whose files would go"),
        )
        .hint("release them first: `GET /holds?tenant=…`, `DELETE /users/{user_id}/hold`")),
        RemovedTenant::Owned(owner) => {
            let detail = format!("the configuration of tenant `{name}` is owned by {owner}");
            Err(Problem::new(Code::OwnedElsewhere, detail).hint("start without the watched folder first"))
        }
    }
}
