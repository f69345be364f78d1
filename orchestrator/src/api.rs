// SPDX-License-Identifier: Apache-2.0
//! The REST API: one table of routes, one road for every request.
//!
//! [`answer`] is that road, top to bottom: request id, host, route, key, role, body, handler. A
//! handler gets a [`Call`] whose caller is proven, and returns an answer or a [`Problem`]. The
//! table is also the source of `/openapi.json`.

#![expect(
    clippy::result_large_err,
    reason = "a problem ends a request: it is made at most once for each, and moved a few times"
)]

mod audit;
mod body;
mod configuration;
mod drain;
mod etag;
mod exec;
mod files;
mod filters;
mod gateways;
mod idempotency;
mod input;
mod inside;
mod keys;
mod observe;
mod openapi;
mod policy_set;
mod ports;
mod problems;
mod processes;
mod retention;
mod routes;
mod sandbox_files;
mod sandboxes;
mod scope;
mod secrets;
mod server;
mod sessions;
mod sieve;
mod snapshots;
mod sse;
mod tenants;
mod terminal;
mod tickets;
mod trees;
mod uploads;
mod users;

pub(crate) use drain::Drain;
pub(crate) use ports::Ports;
pub(crate) use server::serve;

use crate::audit::Audit;
use crate::configuration::{Configuration, Edition};
use crate::control::Gateways;
use crate::driver::{Cause, Driver};
use crate::filter_log::FilterLog;
use crate::host::Host;
use crate::keys::InstallationKeys;
use crate::keys::api::{Caller, Unauthenticated, authenticate};
use crate::pool::Pool;
use crate::retention::Retention;
use crate::rights::Rights;
use crate::runtime::Isolation;
use crate::sessions::peers::PeerSessions;
use crate::snapshots::Snapshots;
use crate::storage::{Content, Storage};
use crate::store::{Actor, Owner, Role, Store};
use crate::stream::ControlStream;
use axum::body::Body;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{RawPathParams, Request, State};
use axum::response::Response;
use axum::routing::{MethodFilter, MethodRouter, on};
use axum::{RequestPartsExt, Router};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use input::QueryPairs;
use postern_common::id::{RequestId, TenantId};
use postern_common::problem::{Code, Problem};
use postern_common::tasks::Tasks;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// What handlers work with.
#[derive(Debug)]
pub(crate) struct Api {
    /// The database.
    pub(crate) store: Store,
    /// Users' files.
    pub(crate) storage: Storage,
    /// This installation's keys.
    pub(crate) keys: Arc<InstallationKeys>,
    /// Tenants' configurations.
    pub(crate) configuration: Configuration,
    /// What filters log.
    pub(crate) audit: Audit,
    pub(crate) filter_log: FilterLog,
    pub(crate) gateways: Gateways,
    /// Sandboxes.
    pub(crate) driver: Driver,
    /// Sandboxes that are kept ready.
    pub(crate) pool: Pool,
    /// What is kept for how long.
    pub(crate) retention: Retention,
    /// Where they run.
    pub(crate) host: Arc<dyn Host>,
    /// What API keys may do.
    pub(crate) rights: Rights,
    /// The isolation that the operator wants exactly, if any.
    pub(crate) isolation: Option<Isolation>,
    /// Whether new work is taken.
    pub(crate) drain: Drain,
    /// Sessions of addresses.
    pub(crate) peers: PeerSessions,
    /// Gateways of other processes.
    pub(crate) stream: Arc<ControlStream>,
    /// Snapshots of sandboxes.
    pub(crate) snapshots: Arc<Snapshots>,
    /// Sandboxes' ports on this machine.
    pub(crate) ports: Ports,
    /// Owns streams that outlive a request's handler.
    pub(crate) tasks: Tasks,
}

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everybody, without a key.
    Open,
    /// A key with at least this role.
    Key(Role),
    /// A key of the whole installation with the role `admin`.
    Installation,
}

/// One route of the table.
pub(crate) struct Route {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    /// Its operationId.
    pub(crate) id: &'static str,
    pub(crate) about: &'static str,
    pub(crate) access: Access,
    /// Query parameters, each with what it means; any other is refused.
    pub(crate) query: &'static [(&'static str, &'static str)],
    /// What the body must be.
    pub(crate) body: body::Kind,
    /// The statuses of good answers, with what they mean.
    pub(crate) answers: &'static [(u16, &'static str)],
    pub(crate) run: fn(Arc<Api>, Call) -> BoxFuture<'static, Answer>,
}

/// What a handler returns.
pub(crate) type Answer = Result<Response, Problem>;

/// A request that passed everything before its handler.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) request_id: RequestId,
    /// The operation that is called.
    pub(crate) operation: &'static str,
    /// Who calls; `None` only on routes that are open.
    caller: Option<Caller>,
    path: Vec<(String, String)>,
    pub(crate) query: QueryPairs,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// The body of a route whose handler takes it as it comes.
    stream: Option<Streamed>,
    /// The WebSocket that it wants to become, where the route is one. Behind a lock for the same reason.
    upgrade: Mutex<Option<WebSocketUpgrade>>,
}

/// A body that is not read yet.
///
/// Behind a lock nobody ever waits for: handlers look at a call from several threads, one after the other.
struct Streamed(Mutex<Option<Content>>);

impl fmt::Debug for Streamed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Streamed")
    }
}

impl Call {
    /// Who calls.
    pub(crate) fn caller(&self) -> Result<&Caller, Problem> {
        self.caller.as_ref().ok_or_else(|| problems::unauthenticated(&Unauthenticated::Missing))
    }

    /// The parameter `name` of the path.
    pub(crate) fn path<T: std::str::FromStr>(&self, name: &str) -> Result<T, Problem>
    where
        T::Err: fmt::Display,
    {
        let value = self.path.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str());
        value.parse().map_err(|error: T::Err| Problem::new(Code::NotFound, error.to_string()))
    }

    /// The tenant that the call is about: the key's own, or for a key of the whole installation
    /// the one that `?tenant=` names, `default` if none.
    pub(crate) fn tenant(&self) -> Result<TenantId, Problem> {
        let asked: Option<TenantId> = self.query.parsed("tenant")?;
        match (self.caller()?.tenant.clone(), asked) {
            (Some(own), Some(asked)) if own != asked => Err(problems::other_tenant()),
            (Some(tenant), _) | (None, Some(tenant)) => Ok(tenant),
            (None, None) => TenantId::parse(crate::configuration::DEFAULT_TENANT)
                .map_err(|error| Problem::new(Code::Internal, error.to_string())),
        }
    }

    /// The tenant that a list is of; `None`: all.
    pub(crate) fn tenant_filter(&self) -> Result<Option<TenantId>, Problem> {
        match (&self.caller()?.tenant, self.query.text("tenant")) {
            (None, None) => Ok(None),
            _ => self.tenant().map(Some),
        }
    }

    /// The body as it comes; empty on routes that do not take it so, and the second time.
    pub(crate) fn content(&mut self) -> Content {
        let stream = self.stream.take().and_then(|it| it.0.into_inner().ok().flatten());
        stream.unwrap_or_else(|| futures_util::stream::empty().boxed())
    }

    /// The WebSocket that the call becomes.
    pub(crate) fn upgrade(&self) -> Result<WebSocketUpgrade, Problem> {
        let upgrade = self.upgrade.lock().unwrap_or_else(PoisonError::into_inner).take();
        upgrade.ok_or_else(|| terminal::not_upgraded("it asks for none"))
    }

    pub(crate) fn actor(&self) -> Result<Actor, Problem> {
        Ok(Actor::Key(self.caller()?.key.clone()))
    }

    /// Who does this, for the log.
    pub(crate) fn cause(&self, reason: Option<&str>) -> Result<Cause, Problem> {
        Ok(Cause {
            actor: self.actor()?,
            reason: reason.map(str::to_owned),
            request: Some(self.request_id.clone()),
        })
    }

    /// Who edits a configuration.
    pub(crate) fn edition(&self) -> Result<Edition, Problem> {
        Ok(Edition {
            owner: Owner::Api,
            actor: self.actor()?,
            request: Some(self.request_id.clone()),
            dry_run: self.query.flag("dry_run")?,
        })
    }
}

/// The API's routes, ready to be served.
pub(crate) fn router(api: Arc<Api>) -> Router {
    let mut router = Router::new();
    for route in routes::ROUTES.iter() {
        router = router.route(route.path, method(route));
    }
    router.fallback(unknown).method_not_allowed_fallback(wrong_method).with_state(api)
}

fn method(route: &'static Route) -> MethodRouter<Arc<Api>> {
    let filter = MethodFilter::try_from(route.method.clone()).unwrap_or(MethodFilter::GET);
    on(filter, async move |State(api): State<Arc<Api>>, request: Request| answer(route, api, request).await)
}

/// The road of a request whose route is known.
async fn answer(route: &'static Route, api: Arc<Api>, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    let request_id = parts.extensions.get::<RequestId>().cloned().unwrap_or_else(RequestId::generate);
    let judged = admit(route, &api, &mut parts, body, request_id.clone()).await;
    let answered = match judged {
        Ok(call) => (route.run)(api, call).await,
        Err(problem) => Err(problem),
    };
    answered.unwrap_or_else(|problem| problems::response(problem, &request_id))
}

/// Judges a request: cheap refusals first, the body last.
async fn admit(
    route: &'static Route,
    api: &Api,
    parts: &mut Parts,
    body: Body,
    request_id: RequestId,
) -> Result<Call, Problem> {
    let caller = match route.access {
        Access::Open => None,
        Access::Key(_) | Access::Installation => Some(caller(api, parts, route).await?),
    };
    // What reads or removes goes on while the orchestrator ends.
    if !matches!(route.method, Method::GET | Method::DELETE) {
        drop(api.drain.enter().await?);
    }
    let query = QueryPairs::read(parts.uri.query().unwrap_or_default(), route.query)?;
    let path = match parts.extract::<RawPathParams>().await {
        Ok(params) => params.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        Err(_unreadable) => return Err(Problem::new(Code::RequestMalformed, "the path is not valid UTF-8")),
    };
    let (body, stream) = match route.body {
        body::Kind::Stream => {
            (Bytes::new(), Some(Streamed(Mutex::new(Some(body::stream(&parts.headers, body)?)))))
        }
        kind => (body::read(kind, &parts.headers, body).await?, None),
    };
    let upgrade = match route.body {
        body::Kind::WebSocket => Some(parts.extract::<WebSocketUpgrade>().await),
        _ => None,
    };
    let upgrade = upgrade.transpose().map_err(|refused| terminal::not_upgraded(&refused.body_text()))?;
    let upgrade = Mutex::new(upgrade);
    let headers = std::mem::take(&mut parts.headers);
    Ok(Call { request_id, operation: route.id, caller, path, query, headers, body, stream, upgrade })
}

/// Who calls, and whether the policies of the control plane let them.
async fn caller(api: &Api, parts: &Parts, route: &Route) -> Result<Caller, Problem> {
    let ticket = (route.body == body::Kind::WebSocket).then(|| ticket(parts)).flatten();
    let caller = match ticket {
        Some(ticket) => tickets::redeem(api, &ticket, parts.uri.path()).await?,
        None => {
            let caller = authenticate(&api.keys, &api.store, &parts.headers).await;
            caller.map_err(|error| problems::unauthenticated(&error))?
        }
    };
    match api.rights.call(&caller, route.id) {
        Ok(()) => Ok(caller),
        Err(denied) if denied.policy.is_some() => Err(problems::beyond_rights(&denied)),
        // Nothing permits it: the role is too low, and the table says which would do.
        Err(_) => Err(match route.access {
            Access::Key(role) => problems::lacks_role(role, false),
            Access::Open | Access::Installation => problems::lacks_role(Role::Admin, true),
        }),
    }
}

/// The ticket of a client that cannot send a key.
fn ticket(parts: &Parts) -> Option<String> {
    let mut pairs = url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
    pairs.find(|(name, _)| name == "ticket").map(|(_, ticket)| ticket.into_owned())
}

async fn unknown(request: Request) -> Response {
    let id = request.extensions().get::<RequestId>().cloned().unwrap_or_else(RequestId::generate);
    let problem =
        Problem::new(Code::NotFound, "the API has no such path").hint("`GET /openapi.json` lists all paths");
    problems::response(problem, &id)
}

async fn wrong_method(request: Request) -> Response {
    let id = request.extensions().get::<RequestId>().cloned().unwrap_or_else(RequestId::generate);
    let problem =
        Problem::new(Code::MethodNotAllowed, format!("the path has no method {}", request.method()))
            .hint("the header `Allow` lists the path's methods");
    problems::response(problem, &id)
}

/// Whether the `Host` of a request names this machine: a page in a browser that resolves its own
/// name to a loopback address is refused, and so cannot reach the API.
pub(crate) fn is_local_host(headers: &HeaderMap, uri: &http::Uri) -> bool {
    let host = headers.get(header::HOST).and_then(|value| value.to_str().ok());
    let host = host.or_else(|| uri.authority().map(http::uri::Authority::as_str));
    let Some(host) = host else { return false };
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// An answer with a JSON body.
pub(crate) fn json(status: StatusCode, value: &impl serde::Serialize) -> Answer {
    let text = serde_json::to_vec(value)
        .map_err(|error| Problem::new(Code::Internal, format!("the answer could not be written: {error}")))?;
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// An answer without a body.
pub(crate) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}
