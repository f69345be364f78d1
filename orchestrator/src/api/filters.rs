// SPDX-License-Identifier: Apache-2.0
//! Filters over HTTP, beyond what every part of a configuration has: where gateways stand with
//! them, pushing without putting in force, putting in force, going back, and what they log.

use super::configuration::{Filters, Part as _, missing, tenant};
use super::input::{mistaken, parse};
use super::problems::Refused;
use super::{Answer, Api, Call, body, etag, json, sse};
use crate::configuration::{Edited, Wanted};
use crate::control::GatewayStand;
use crate::store::{FilterVersion, Kind, Role};
use bytes::Bytes;
use http::{StatusCode, header};
use postern_common::decision::FilterLine;
use postern_common::folder::FilterFiles;
use postern_common::id::{FilterName, TenantId};
use postern_common::problem::{Code, Problem};
use postern_common::tasks::Stop;
use serde::Deserialize;
use serde_json::{Value, json as value};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc};

/// How long a log is quiet before a line keeps the connection alive.
const QUIET: Duration = Duration::from_secs(15);
/// Events that wait for a slow reader.
const WAITING: usize = 64;

/// `GET /filters`.
pub(super) async fn list(api: Arc<Api>, call: Call) -> Answer {
    let mut told = Filters::list(&*tenant(&api, &call).await?);
    let tenant = call.tenant()?;
    let versions = api.store.filter_versions_in_force(&tenant).await.map_err(Refused::from)?;
    let stands = api.gateways.standing(&tenant);
    for filter in told.get_mut("filters").and_then(Value::as_array_mut).into_iter().flatten() {
        let name = filter.get("name").and_then(Value::as_str).and_then(|name| FilterName::parse(name).ok());
        let (Some(name), Some(filter)) = (name, filter.as_object_mut()) else { continue };
        let version = versions.get(&name);
        let is_there =
            |stand: &&GatewayStand| version.is_some() && version_at(stand, &name) == version.copied();
        filter.insert("filter_version".to_owned(), value!(version));
        filter.insert("gateways".to_owned(), value!(stands.len()));
        filter.insert("gateways_in_force".to_owned(), value!(stands.iter().filter(is_there).count()));
    }
    json(StatusCode::OK, &told)
}

/// `GET /filters/{name}`. Always told anew: where gateways stand is no part of its `ETag`.
pub(super) async fn show(api: Arc<Api>, call: Call) -> Answer {
    let name: FilterName = call.path("name")?;
    let found = tenant(&api, &call).await?;
    let mut told = Filters::show(&found, &name).ok_or_else(|| missing(Kind::Filter, name.as_str()))?;
    let tenant = call.tenant()?;
    let versions = api.store.filter_versions_in_force(&tenant).await.map_err(Refused::from)?;
    let gateways: Vec<Value> =
        api.gateways.standing(&tenant).iter().map(|stand| shown(stand, &name)).collect();
    if let Some(told) = told.as_object_mut() {
        told.insert("version".to_owned(), value!(versions.get(&name)));
        told.insert("gateways".to_owned(), value!(gateways));
    }
    let mut response = json(StatusCode::OK, &told)?;
    if let Some(digest) = found.digests.get(&(Kind::Filter, name.to_string())) {
        response.headers_mut().insert(header::ETAG, etag::of(digest));
    }
    Ok(response)
}

/// The version of a filter that a gateway enforces.
fn version_at(stand: &GatewayStand, name: &FilterName) -> Option<u64> {
    stand.in_force.as_ref()?.filters.get(name).copied()
}

/// Where a gateway stands with a tenant's configuration, and with one filter of it.
fn shown(stand: &GatewayStand, name: &FilterName) -> Value {
    value!({
        "gateway": stand.gateway,
        "engine": stand.engine,
        "state": stand.stand,
        "version": version_at(stand, name),
        "configuration": stand.in_force.as_ref().map(|told| told.revision),
        "reasons": stand.reasons,
    })
}

/// `POST /filters/{name}/versions`: `{manifest, component}`. Kept and compiled, not in force.
pub(super) async fn push(api: Arc<Api>, call: Call) -> Answer {
    let name: FilterName = call.path("name")?;
    let filter: FilterFiles = typed(&call.body)?;
    let request = Some(call.request_id.clone());
    let pushed = api.configuration.push_filter(&call.tenant()?, &name, filter, call.actor()?, request).await;
    let version = pushed.map_err(Refused::from)?;
    json(StatusCode::CREATED, &value!({ "name": name, "version": version, "in_force": false }))
}

/// Which version is meant; the usual one if none is named.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Which {
    version: Option<i64>,
}

/// `POST /filters/{name}/activate`: `{version?}`.
pub(super) async fn activate(api: Arc<Api>, call: Call) -> Answer {
    let which: Which = typed(&call.body)?;
    // Whoever reviews what others push may mean another version than the newest by now.
    if which.version.is_none() && call.caller()?.role == Role::ActivateFilters {
        return Err(Problem::new(Code::InvalidInput, "a key of `filters:activate` names the version")
            .hint("send `version`, as `GET /filters/{name}/versions` shows it"));
    }
    put_in_force(&api, &call, Wanted::Newer(which.version)).await
}

/// `POST /filters/{name}/rollback`: `{version?}`.
pub(super) async fn roll_back(api: Arc<Api>, call: Call) -> Answer {
    let which: Which = typed(&call.body)?;
    put_in_force(&api, &call, Wanted::Older(which.version)).await
}

async fn put_in_force(api: &Api, call: &Call, wanted: Wanted) -> Answer {
    let name: FilterName = call.path("name")?;
    let activated = api.configuration.activate_filter(&call.tenant()?, &name, wanted, &call.edition()?).await;
    let (version, edited): (i64, Edited) = activated.map_err(Refused::from)?;
    let mut told = value!(edited);
    if let Some(told) = told.as_object_mut() {
        told.insert("name".to_owned(), value!(name));
        told.insert("filter_version".to_owned(), value!(version));
    }
    json(StatusCode::OK, &told)
}

/// `GET /filters/{name}/versions`.
pub(super) async fn versions(api: Arc<Api>, call: Call) -> Answer {
    let name: FilterName = call.path("name")?;
    let found = api.configuration.filter_versions(&call.tenant()?, &name).await;
    let (versions, in_force) = found.map_err(Refused::from)?;
    let shown = |version: &FilterVersion| {
        value!({
            "version": version.version,
            "component": version.component,
            "pushed_at": version.pushed_at,
            "activated_at": version.activated_at,
            "in_force": Some(version.version) == in_force,
        })
    };
    let versions: Vec<Value> = versions.iter().map(shown).collect();
    json(StatusCode::OK, &value!({ "name": name, "versions": versions, "in_force": in_force }))
}

/// `GET /filters/{name}/logs`: what the filter logged, and with `follow` what it will.
pub(super) async fn logs(api: Arc<Api>, call: Call) -> Answer {
    let name: FilterName = call.path("name")?;
    let tenant = call.tenant()?;
    let (lines, new) = api.filter_log.follow(&tenant, &name);
    if !call.query.flag("follow")? {
        return json(StatusCode::OK, &value!({ "lines": lines }));
    }
    let (sender, receiver) = mpsc::channel(WAITING);
    let following = Following { tenant, name, sender, number: 0 };
    api.tasks.spawn(async move |stop: Stop| {
        let _ = stop.run_until_cancelled(following.carry(lines, new)).await;
    });
    Ok(sse::response(receiver))
}

/// One reader of a filter's log.
struct Following {
    tenant: TenantId,
    name: FilterName,
    sender: mpsc::Sender<Bytes>,
    number: u64,
}

impl Following {
    async fn carry(mut self, lines: Vec<Arc<FilterLine>>, mut new: broadcast::Receiver<Arc<FilterLine>>) {
        for line in lines {
            if !self.send("line", &value!(line)).await {
                return;
            }
        }
        loop {
            let is_sent = match tokio::time::timeout(QUIET, new.recv()).await {
                Ok(Ok(line)) if line.tenant == self.tenant && line.filter == self.name => {
                    self.send("line", &value!(line)).await
                }
                Ok(Ok(_of_another)) => !self.sender.is_closed(),
                Ok(Err(broadcast::error::RecvError::Lagged(missed))) => {
                    self.send("missed", &value!({ "lines": missed })).await
                }
                Ok(Err(broadcast::error::RecvError::Closed)) => return,
                Err(_quiet) => self.sender.send(sse::KEEP_ALIVE).await.is_ok(),
            };
            if !is_sent {
                return;
            }
        }
    }

    async fn send(&mut self, kind: &str, json: &Value) -> bool {
        self.number += 1;
        self.sender.send(sse::event(self.number, kind, json)).await.is_ok()
    }
}

fn typed<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let value = parse(bytes, body::CONFIGURATION_BYTES)?;
    serde_json::from_value(value).map_err(|error| mistaken("", error.to_string()))
}
