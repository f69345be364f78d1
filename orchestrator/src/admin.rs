// SPDX-License-Identifier: Apache-2.0
//! The admin port: `/healthz`, `/readyz`, `/metrics`. For operators only; nothing here changes
//! anything.

use crate::control::Gateways;
use crate::driver::Driver;
use crate::pool::Pool;
use crate::store::Store;
use crate::sync::processes::Syncs;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use http::{HeaderValue, StatusCode, header};
use postern_common::tasks::{Stop, Tasks};
use postern_common::telemetry::{EXPOSITION_TYPE, exposition, registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::net::TcpListener;

/// How long the database may take to be called ready.
const READY_TIME: Duration = Duration::from_secs(2);

/// What the port tells of.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    pub(crate) store: Store,
    pub(crate) gateways: Gateways,
    pub(crate) pool: Pool,
    pub(crate) driver: Driver,
    pub(crate) syncs: Syncs,
}

/// Serves the admin port until the tasks are stopped.
pub(crate) fn serve(admin: Admin, listener: TcpListener, tasks: &Tasks) {
    let router = Router::new()
        .route("/healthz", get(|| async { text(StatusCode::OK, "ok\n") }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(admin);
    tasks.spawn(async move |stop: Stop| {
        let served =
            axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await });
        if let Err(error) = served.await {
            tracing::error!(error = &error as &dyn std::error::Error, "the admin port ended");
        }
    });
}

fn text(status: StatusCode, text: &'static str) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
}

async fn ready(State(admin): State<Admin>) -> Response {
    match tokio::time::timeout(READY_TIME, admin.store.ping()).await {
        Ok(Ok(())) => text(StatusCode::OK, "ready\n"),
        _ => text(StatusCode::SERVICE_UNAVAILABLE, "the database does not answer\n"),
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let Ok(live) = admin.store.live_sandboxes().await else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "the database does not answer\n");
    };
    let mut registry = registry();
    let sandboxes = Family::<[(&str, &str); 1], Gauge>::default();
    let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
    for row in &live {
        *counts.entry(row.state.shown()).or_default() += 1;
    }
    for (status, count) in counts {
        sandboxes.get_or_create(&[("status", status)]).set(count);
    }
    registry.register("sandboxes", "Sandboxes that are not over, by status", sandboxes);
    let gateways = Gauge::<i64>::default();
    gateways.set(i64::try_from(admin.gateways.connected()).unwrap_or(i64::MAX));
    registry.register("gateways_connected", "Gateways that follow this orchestrator", gateways);
    warm_pool(&admin.pool, &mut registry);
    let startups = "From a create call until its sandbox runs, by whether it was kept ready";
    registry.register("sandbox_startup_seconds", startups, admin.driver.startups());
    admin.driver.register_counts(&mut registry);
    let taken = "How long the database took, by query";
    registry.register("store_seconds", taken, admin.store.times());
    let carrying = "How long files took to be brought into sandboxes, and to be flushed when they ended";
    registry.register("sync_seconds", carrying, admin.syncs.durations());
    let lag = "From a change in a sandbox until the store has it";
    registry.register("sync_lag_seconds", lag, admin.syncs.lag());
    let mut response = Response::new(Body::from(exposition(&registry)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(EXPOSITION_TYPE));
    response
}

/// Depth and hit rate of the sandboxes that are kept ready.
fn warm_pool(pool: &Pool, registry: &mut Registry) {
    let available = Family::<[(&str, String); 1], Gauge>::default();
    for (template, count) in pool.available() {
        available.get_or_create(&[("template", template)]).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    registry.register(
        "warm_pool_available",
        "Sandboxes that are ready to be claimed, by template",
        available,
    );
    let claims = Family::<[(&str, String); 2], Counter>::default();
    for ((template, claimed), count) in pool.claims() {
        claims
            .get_or_create(&[("template", template), ("result", claimed.as_str().to_owned())])
            .inc_by(count);
    }
    registry.register(
        "warm_pool_claims",
        "Create calls for templates that have sandboxes kept ready, by whether there was one",
        claims,
    );
}
