// SPDX-License-Identifier: Apache-2.0
//! Retention of users' files over HTTP, one step a call, and users who are held.

use super::files::owner;
use super::input::{Fields, mistaken};
use super::problems::Refused;
use super::{Answer, Api, Call, empty, json};
use crate::configuration::ConfigurationError;
use crate::retention::{StepError, Wanted};
use crate::storage::StorageError;
use crate::store::{Action, AuditEntry, FileOwner, FilePlace, HoldRow, SetHold, page_size};
use http::StatusCode;
use postern_common::clock;
use postern_common::id::percent_encoded;
use postern_common::problem::{Code, Problem};
use serde_json::{Value, json as value};
use std::sync::Arc;

/// The longest reason of a hold.
const REASON_BYTES: usize = 1024;

/// `POST /retention`: `{dry_run?, after?}`.
pub(super) async fn step(api: Arc<Api>, call: Call) -> Answer {
    let mut fields = Fields::read(&call.body)?;
    let dry_run = fields.flag("dry_run").unwrap_or(false);
    let after = fields.text("after");
    fields.finish()?;
    let wanted = Wanted { tenant: call.tenant_filter()?, dry_run, after, actor: call.actor()? };
    match api.retention.files().step(&wanted, clock::now()).await {
        Ok(step) => json(StatusCode::OK, &step),
        Err(StepError::Place(error)) => Err(mistaken("/after", error.to_string())),
        Err(StepError::Store(error)) => Err(Refused::from(error).into()),
    }
}

/// `PUT /users/{user_id}/hold`: `{reason}`.
pub(super) async fn hold(api: Arc<Api>, call: Call) -> Answer {
    let (tenant, user) = owner(&call)?;
    let mut fields = Fields::read(&call.body)?;
    let reason: Option<String> = fields.required("reason");
    if reason.as_ref().is_some_and(|reason| reason.trim().is_empty() || reason.len() > REASON_BYTES) {
        fields.mistake("/reason", "expected 1 to 1024 bytes that say why");
    }
    fields.finish()?;
    api.configuration.tenant(&tenant).await.map_err(Refused::from)?;
    let hold = HoldRow {
        owner: FileOwner { tenant, user },
        reason: reason.unwrap_or_default(),
        set_by: call.actor()?.to_string(),
        set_at: crate::store::whole_micros(clock::now()),
    };
    let audit = audit(&call, &hold.owner, Action::HoldSet)?.reason(Some(hold.reason.clone()));
    let files = api.storage.of(&hold.owner.tenant, &hold.owner.user);
    match files.hold(&hold, &audit).await.map_err(Refused::from)? {
        SetHold::Set => json(StatusCode::OK, &shown(&hold)),
        SetHold::NoTenant => Err(Refused::from(ConfigurationError::UnknownTenant(hold.owner.tenant)).into()),
        SetHold::BeingErased => Err(Refused::from(StorageError::BeingErased).into()),
    }
}

/// `GET /users/{user_id}/hold`.
pub(super) async fn show(api: Arc<Api>, call: Call) -> Answer {
    let owner = held(&call)?;
    let hold = api.store.hold_on(&owner).await.map_err(Refused::from)?;
    json(StatusCode::OK, &shown(&hold.ok_or_else(|| not_held(&owner))?))
}

/// `DELETE /users/{user_id}/hold`.
pub(super) async fn release(api: Arc<Api>, call: Call) -> Answer {
    let owner = held(&call)?;
    let audit = audit(&call, &owner, Action::HoldReleased)?;
    if !api.store.release_hold(&owner, &audit).await.map_err(Refused::from)? {
        return Err(not_held(&owner));
    }
    Ok(empty(StatusCode::NO_CONTENT))
}

/// `GET /holds`.
pub(super) async fn list(api: Arc<Api>, call: Call) -> Answer {
    let limit = page_size(call.query.parsed("limit")?);
    let after = match call.query.text("after") {
        None => FilePlace::default(),
        Some(text) => match text.split_once('/') {
            Some((tenant, user)) => (tenant.to_owned(), user.to_owned()),
            None => return Err(mistaken("/query/after", "expected `next` of the page before")),
        },
    };
    let tenant = call.tenant_filter()?;
    let holds = api.store.holds(tenant.as_ref(), &after, limit).await.map_err(Refused::from)?;
    let is_full = holds.len() == usize::try_from(limit).unwrap_or(usize::MAX);
    let next = holds.last().filter(|_| is_full);
    let next = next.map(|hold| format!("{}/{}", hold.owner.tenant, hold.owner.user.as_str()));
    json(StatusCode::OK, &value!({ "holds": holds.iter().map(shown).collect::<Vec<_>>(), "next": next }))
}

/// A hold as it is shown, also where it keeps something.
pub(super) fn shown(hold: &HoldRow) -> Value {
    value!({
        "tenant": hold.owner.tenant,
        "user_id": hold.owner.user,
        "reason": hold.reason,
        "set_by": hold.set_by,
        "set_at": hold.set_at,
    })
}

fn held(call: &Call) -> Result<FileOwner, Problem> {
    let (tenant, user) = owner(call)?;
    Ok(FileOwner { tenant, user })
}

fn not_held(owner: &FileOwner) -> Problem {
    Problem::new(Code::NotFound, format!("user `{}` is not held", owner.user.as_str()))
        .hint("`GET /holds` lists who is")
}

fn audit(call: &Call, owner: &FileOwner, action: Action) -> Result<AuditEntry, Problem> {
    Ok(AuditEntry::new(clock::now(), Some(owner.tenant.clone()), action, call.actor()?)
        .subject(format!("user/{}", percent_encoded(owner.user.as_str())))
        .request(Some(call.request_id.clone())))
}
