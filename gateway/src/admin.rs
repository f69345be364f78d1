// SPDX-License-Identifier: Apache-2.0
//! The operators' listener: `/healthz`, `/readyz` and `/metrics`, nothing else.
//!
//! Healthy means that the process answers; ready means that it would let requests through: its
//! state came from an orchestrator, is young enough, and has filters of its own engine.

use crate::Gateway;
use crate::identify::Trust;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use postern_common::clock;
use postern_common::telemetry::{EXPOSITION_TYPE, exposition};

/// Answers one request of an operator.
pub(crate) fn answer(gateway: &Gateway, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here\n");
    }
    match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => match gateway.freshness.check() {
            Ok(()) if gateway.unserved.count() > 0 => {
                let count = gateway.unserved.count();
                let words = format!(
                    "not ready: filters of {count} tenants were compiled for another engine; the last good ones \
                     serve on\nrun the orchestrator's release here, or give the orchestrator this release's \
                     `postern-compile` (POSTERN_FILTER_COMPILERS)\n"
                );
                text(StatusCode::SERVICE_UNAVAILABLE, &words)
            }
            Ok(()) => match gateway.identities.trust() {
                Trust::Installation(_) => text(StatusCode::OK, "ready\n"),
                Trust::Issuer(issuer) if issuer.has_keys() => {
                    text(StatusCode::OK, "ready\nbinding: none (a token is good from any peer)\n")
                }
                Trust::Issuer(_) => {
                    text(StatusCode::SERVICE_UNAVAILABLE, "not ready: the issuer's keys are not known\n")
                }
            },
            Err(_) => {
                text(StatusCode::SERVICE_UNAVAILABLE, "not ready: no fresh state from an orchestrator\n")
            }
        },
        "/.well-known/jwks.json" => {
            let mut response = text(StatusCode::OK, &gateway.asserter.keys().to_set().to_string());
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/jwk-set+json"));
            response
        }
        "/metrics" => {
            let snapshot = gateway.snapshot();
            let counters = snapshot.rules().flat_map(|rules| rules.filter_counters());
            gateway.metrics.filters.look(gateway.surroundings.engines.in_flight(), counters);
            gateway.metrics.control_age.set(gateway.freshness.age().as_secs_f64());
            if let Some(left) = gateway.tls.as_ref().and_then(|tls| tls.expiry(clock::now())) {
                gateway.metrics.certificates.expire_in(left);
            }
            let mut response = text(StatusCode::OK, &exposition(&gateway.registered));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(EXPOSITION_TYPE));
            response
        }
        _ => text(StatusCode::NOT_FOUND, "try /healthz, /readyz or /metrics\n"),
    }
}

fn text(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
