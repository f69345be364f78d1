// SPDX-License-Identifier: Apache-2.0
//! Users over HTTP: erased with all that is kept of them.

use super::files::owner;
use super::problems::Refused;
use super::{Answer, Api, Call, json};
use crate::store::{Action, AuditEntry, BegunErasure, FileOwner, HoldRow, SnapshotFilter};
use http::StatusCode;
use postern_common::clock;
use postern_common::id::{SandboxId, SnapshotId, percent_encoded};
use postern_common::problem::{Code, Problem};
use serde_json::{Value, json as value};
use std::sync::Arc;

/// `DELETE /users/{user_id}`: erases files, archive, uploads, snapshots, decisions, sessions, what was set
/// aside and what is known of sandboxes that are over, unless the user is held. May be repeated.
pub(super) async fn erase(api: Arc<Api>, call: Call) -> Answer {
    let (tenant, user) = owner(&call)?;
    let owner = FileOwner { tenant: tenant.clone(), user: user.clone() };
    // From here on nothing of the user comes, until the last call below: whoever stops in between has
    // it repeated.
    match api.storage.of(&tenant, &user).begin_erasure(clock::now()).await.map_err(Refused::from)? {
        BegunErasure::Begun => {}
        BegunErasure::Held(hold) => return held(&api, &owner, &hold).await,
        BegunErasure::Lives(live) => return Err(lives(&live)),
    }
    end_sessions(&api, &call, &owner).await?;
    let objects = api.storage.erase_user(&owner).await.map_err(Refused::from)?;
    let snapshots = erase_snapshots(&api, &owner).await?;
    let set_aside = erase_set_aside(&api, &owner).await?;
    // Parts of an upload that began beside it.
    let objects = objects + api.storage.erase_user(&owner).await.map_err(Refused::from)?;
    let audit = AuditEntry::new(clock::now(), Some(tenant), Action::UserErased, call.actor()?)
        .subject(format!("user/{}", percent_encoded(user.as_str())))
        .request(Some(call.request_id.clone()));
    let rows = api.store.erase_user(&owner, &audit).await.map_err(Refused::from)?;
    let kept = [
        Some(log()),
        api.store.has_others().then(elsewhere),
        api.storage.is_in_a_bucket().then(older_versions),
    ];
    let kept: Vec<Value> = kept.into_iter().flatten().collect();
    json(
        StatusCode::OK,
        &value!({
            "erased": { "objects": objects, "files": rows.files, "archived": rows.archived,
                "snapshots": snapshots + rows.snapshots, "decisions": rows.decisions,
                "sandboxes": rows.sandboxes, "sessions": rows.sessions, "set_aside": set_aside },
            "kept": kept,
        }),
    )
}

fn lives(live: &[SandboxId]) -> Problem {
    let live = live.iter().map(SandboxId::as_str).collect::<Vec<_>>().join(", ");
    let detail = format!("the user has live sandboxes, whose files would come back: {live}");
    Problem::new(Code::StateConflict, detail).hint("destroy them first: `DELETE /sandbox/{id}`")
}

/// Nothing goes of a user who is held: what there is is told.
async fn held(api: &Api, owner: &FileOwner, hold: &HoldRow) -> Answer {
    let files = api.storage.of(&owner.tenant, &owner.user).usage().await.map_err(Refused::from)?;
    let archived = api.store.count_archived(owner).await.map_err(Refused::from)?;
    let snapshots = snapshots_of(api, owner).await?.len();
    let why = format!("held: {}", hold.reason);
    let kept = |what: &str, count: u64| value!({ "what": what, "count": count, "why": why });
    json(
        StatusCode::OK,
        &value!({
            "erased": { "objects": 0, "files": 0, "archived": 0, "snapshots": 0, "decisions": 0,
                "sandboxes": 0, "sessions": 0, "set_aside": 0 },
            "kept": [kept("files", files.files), kept("archived files", archived),
                kept("snapshots", u64::try_from(snapshots).unwrap_or(u64::MAX)),
                value!({ "what": "decisions", "why": why }),
                value!({ "what": "sandboxes that are over",
                    "why": format!("{why}; at most as long as `POSTERN_RETENTION_SANDBOXES` says") }), log()],
            "hold": super::retention::shown(hold),
        }),
    )
}

fn log() -> Value {
    value!({ "what": "audit log",
        "why": "what happened is kept as long as `POSTERN_RETENTION_EVENTS` says, with user_id and paths" })
}

/// What a bucket may keep of what was removed from it.
fn older_versions() -> Value {
    value!({ "what": "older versions of objects, if the bucket keeps any",
        "why": "Postern neither lists nor removes them: give the bucket a rule that ends them in time" })
}

/// What this orchestrator cannot reach.
fn elsewhere() -> Value {
    value!({ "what": "snapshots, caches and files set aside on the disks of other orchestrators, if there are any",
        "why": "each removes its own: snapshots within two hours, caches as `POSTERN_FILES_CACHE_AGE` says, what was \
                set aside after a month" })
}

/// Ends the sessions of addresses that speak for the user: gateways refuse them from then on.
async fn end_sessions(api: &Api, call: &Call, owner: &FileOwner) -> Result<(), Problem> {
    let now = clock::now();
    for row in api.store.peer_sessions(now, None).await.map_err(Refused::from)? {
        if (&row.tenant, &row.user_id) == (&owner.tenant, &owner.user) {
            let audit = AuditEntry::new(now, Some(row.tenant), Action::SessionEnded, call.actor()?);
            let audit = audit.subject(format!("session/{}", row.id)).request(Some(call.request_id.clone()));
            api.peers.end(&row.id, &audit, now).await.map_err(Refused::from)?;
        }
    }
    Ok(())
}

async fn snapshots_of(api: &Api, owner: &FileOwner) -> Result<Vec<SnapshotId>, Problem> {
    let FileOwner { tenant, user } = owner.clone();
    let filter =
        SnapshotFilter { tenant: Some(tenant), user: Some(user), before: None, limit: Some(u32::MAX) };
    let found = api.store.snapshots(&filter).await.map_err(Refused::from)?;
    Ok(found.into_iter().map(|snapshot| snapshot.id).collect())
}

/// Removes a user's snapshots, a page at a time; how many there were.
async fn erase_snapshots(api: &Api, owner: &FileOwner) -> Result<u64, Problem> {
    let mut erased = 0;
    loop {
        let found = snapshots_of(api, owner).await?;
        if found.is_empty() {
            return Ok(erased);
        }
        for id in found {
            api.snapshots.remove(&id).await.map_err(Refused::from)?;
            erased += 1;
        }
    }
}

/// Removes what of the user's files was set aside on this machine; of how many sandboxes.
async fn erase_set_aside(api: &Api, owner: &FileOwner) -> Result<u64, Problem> {
    let mut erased = 0;
    for id in api.store.set_aside_of(owner).await.map_err(Refused::from)? {
        erased += u64::from(api.host.forget_aside(&id).await.map_err(Refused::from)?);
    }
    Ok(erased)
}
