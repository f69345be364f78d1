// SPDX-License-Identifier: Apache-2.0
//! Exports a span for each request to an OpenTelemetry collector (OTLP over HTTP, in JSON).
//!
//! Requests never wait for it: spans are sent in batches, and what finds no room or no collector is
//! dropped and counted. A span says what a decision record says, without who the user is and
//! without anything that a request held.

use crate::listener::OwnedExecutor;
use crate::upstream::address::UpstreamRules;
use crate::upstream::{Authorities, Connector, TlsUnusable};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use postern_common::decision::{DecisionRecord, Verdict};
use postern_common::secret::Secret;
use postern_common::tasks::{Stop, Tasks};
use prometheus_client::metrics::counter::Counter;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use url::Url;

/// Spans that may wait for the collector.
const SPANS: usize = 8192;
/// Spans of one call.
const SPANS_AT_ONCE: usize = 512;
/// How long spans are gathered before they are sent.
const GATHER: Duration = Duration::from_secs(1);
/// How long the collector may take.
const SEND_TIME: Duration = Duration::from_secs(5);
/// How much of its answer is read.
const ANSWER_BYTES: usize = 64 * 1024;
/// A span of a server (OTLP `SpanKind`), and one that failed (`StatusCode`).
const SERVER: u8 = 2;
const ERROR: u8 = 2;

/// Where spans go.
#[derive(Debug, Clone)]
pub struct SpanExport {
    /// The collector, such as `http://collector:4318`; `/v1/traces` is added.
    pub endpoint: Url,
    /// Headers of each call, by which the collector knows us.
    pub headers: Vec<(HeaderName, Secret<String>)>,
}

/// Spans cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum SpanExportError {
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsUnusable),
    /// The endpoint.
    #[error("`{0}` cannot be a collector's address: expected http:// or https:// and a host")]
    Endpoint(String),
    /// A header.
    #[error("the value of header `{0}` for the collector is none that a header can have")]
    Header(HeaderName),
}

/// The place of a request in its trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// 32 hex digits.
    pub(crate) trace: String,
    /// Our own span: 16 hex digits.
    pub(crate) span: String,
    /// The span that it is part of, if the sandbox has named one.
    pub(crate) parent: Option<String>,
}

/// Takes spans. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Spans {
    spans: mpsc::Sender<Value>,
    dropped: Counter,
}

impl Spans {
    /// Begins to export; what still waits when `tasks` are stopped is sent first.
    ///
    /// # Errors
    /// [`SpanExportError`].
    pub(crate) fn start(
        export: &SpanExport,
        authorities: Vec<CertificateDer<'static>>,
        dropped: Counter,
        tasks: &Tasks,
    ) -> Result<Self, SpanExportError> {
        let collector = Collector::new(export, authorities, tasks)?;
        let (spans, received) = mpsc::channel(SPANS);
        let lost = dropped.clone();
        tasks.spawn(move |stop| send(collector, received, lost, stop));
        Ok(Self { spans, dropped })
    }

    /// Adds a request's span.
    pub(crate) fn note(&self, record: &DecisionRecord, place: &Place) {
        if self.spans.try_send(span(record, place)).is_err() {
            self.dropped.inc();
        }
    }
}

fn span(record: &DecisionRecord, place: &Place) -> Value {
    let begun = record.at.as_nanosecond();
    let took = record.microseconds.get("total").copied().unwrap_or_default();
    let path = record.path_template.as_deref();
    let text = |key: &str, value: Option<String>| {
        value.map(|value| json!({ "key": key, "value": { "stringValue": value } }))
    };
    let attributes = [
        text("http.request.method", Some(record.method.clone())),
        text("http.route", path.map(ToOwned::to_owned)),
        text("postern.verdict", Some(verdict(record.verdict).to_owned())),
        text("postern.code", record.code.map(|code| code.to_string())),
        text("postern.tenant", record.tenant.as_ref().map(ToString::to_string)),
        text("postern.sandbox_id", record.sandbox_id.as_ref().map(ToString::to_string)),
        text("postern.backend", record.backend.as_ref().map(ToString::to_string)),
        text("postern.operation", record.operation.as_ref().map(ToString::to_string)),
        text("postern.decision_id", Some(record.id.to_string())),
        text("postern.request_id", Some(record.request_id.to_string())),
    ];
    let mut attributes: Vec<Value> = attributes.into_iter().flatten().collect();
    if let Some(upstream) = &record.upstream {
        // 64-bit numbers are text in OTLP's JSON.
        let status = json!({ "intValue": upstream.status.to_string() });
        attributes.push(json!({ "key": "http.response.status_code", "value": status }));
    }
    let mut span = json!({
        "traceId": place.trace,
        "spanId": place.span,
        "name": path.map_or_else(|| record.method.clone(), |path| format!("{} {path}", record.method)),
        "kind": SERVER,
        "startTimeUnixNano": begun.to_string(),
        "endTimeUnixNano": (begun + i128::from(took) * 1000).to_string(),
        "attributes": attributes,
        "status": if record.verdict == Verdict::Error { json!({ "code": ERROR }) } else { json!({}) },
    });
    if let (Some(parent), Some(fields)) = (&place.parent, span.as_object_mut()) {
        fields.insert("parentSpanId".to_owned(), parent.clone().into());
    }
    span
}

const fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
        Verdict::Error => "error",
    }
}

/// The way to the collector.
struct Collector {
    client: Client<Connector, Full<Bytes>>,
    uri: Uri,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("the collector could not be reached")]
    Reach(#[source] hyper_util::client::legacy::Error),
    #[error("the collector answered {0}")]
    Status(StatusCode),
    #[error("the collector did not answer in time")]
    Slow,
    #[error("spans have no form that can be sent")]
    Form(#[from] http::Error),
}

impl Collector {
    fn new(
        export: &SpanExport,
        authorities: Vec<CertificateDer<'static>>,
        tasks: &Tasks,
    ) -> Result<Self, SpanExportError> {
        let endpoint = &export.endpoint;
        let wrong = || {
            SpanExportError::Endpoint(format!(
                "{}://{}",
                endpoint.scheme(),
                endpoint.host_str().unwrap_or_default()
            ))
        };
        let is_http = matches!(endpoint.scheme(), "http" | "https");
        let (host, port) = endpoint
            .host_str()
            .zip(endpoint.port_or_known_default())
            .filter(|_| is_http)
            .ok_or_else(wrong)?;
        let rules = UpstreamRules::new(&[format!("{host}:{port}")], &[]).map_err(|_mistakes| wrong())?;
        let authorities = Authorities::new(authorities).map_err(TlsUnusable)?;
        let connector = Connector::new(rules, &authorities, &[b"http/1.1"]).map_err(TlsUnusable)?;
        let client = Client::builder(OwnedExecutor(tasks.clone())).build(connector);
        let path = format!("{}/v1/traces", endpoint.as_str().trim_end_matches('/'));
        let uri = path.parse().map_err(|_no_uri| wrong())?;
        let header = |(name, value): &(HeaderName, Secret<String>)| {
            let mut value = HeaderValue::from_str(value.reveal())
                .map_err(|_no_value| SpanExportError::Header(name.clone()))?;
            value.set_sensitive(true);
            Ok((name.clone(), value))
        };
        let headers = export.headers.iter().map(header).collect::<Result<_, SpanExportError>>()?;
        Ok(Self { client, uri, headers })
    }

    async fn take(&self, spans: &[Value]) -> Result<(), SendError> {
        let body = json!({ "resourceSpans": [{
            "resource": { "attributes": [
                { "key": "service.name", "value": { "stringValue": "postern-gateway" } },
                { "key": "service.version", "value": { "stringValue": env!("CARGO_PKG_VERSION") } },
            ] },
            "scopeSpans": [{ "scope": { "name": "postern-gateway" }, "spans": spans }],
        }] });
        let mut request = Request::post(self.uri.clone()).body(Full::new(Bytes::from(body.to_string())))?;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        request.headers_mut().extend(self.headers.iter().cloned());
        let asked = async {
            let answer = self.client.request(request).await.map_err(SendError::Reach)?;
            let status = answer.status();
            // Read, so that the connection can be used again.
            drop(Limited::new(answer.into_body(), ANSWER_BYTES).collect().await);
            if status.is_success() { Ok(()) } else { Err(SendError::Status(status)) }
        };
        timeout(SEND_TIME, asked).await.map_err(|_elapsed| SendError::Slow)?
    }
}

async fn send(collector: Collector, mut spans: mpsc::Receiver<Value>, dropped: Counter, stop: Stop) {
    let mut is_told = false;
    loop {
        let mut batch = Vec::new();
        let gathered = async {
            if spans.recv_many(&mut batch, SPANS_AT_ONCE).await > 0 && batch.len() < SPANS_AT_ONCE {
                tokio::time::sleep(GATHER).await;
            }
        };
        let is_stopped = stop.run_until_cancelled(gathered).await.is_none();
        while batch.len() < SPANS_AT_ONCE {
            let Ok(span) = spans.try_recv() else { break };
            batch.push(span);
        }
        if batch.is_empty() {
            return;
        }
        match collector.take(&batch).await {
            Ok(()) => is_told = false,
            Err(error) => {
                dropped.inc_by(batch.len() as u64);
                if !is_told {
                    let cause: &dyn std::error::Error = &error;
                    tracing::warn!(uri = %collector.uri, error = cause, cause = cause.source(), "spans are lost");
                }
                is_told = true;
                if is_stopped {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::Draft;

    #[test]
    fn a_span_says_what_was_decided_and_not_who_asked() {
        let mut record = Draft::new(postern_common::clock::now(), &http::Method::GET).allowed();
        record.user_id = Some(postern_common::id::UserId::parse("alice@example").expect("an id"));
        record.path_template = Some("/orders/{id}".to_owned());
        record.microseconds.insert("total".into(), 1500);
        let place = Place { trace: "a".repeat(32), span: "b".repeat(16), parent: Some("c".repeat(16)) };
        let span = span(&record, &place);
        assert_eq!((span["name"].as_str(), span["kind"].as_u64()), (Some("GET /orders/{id}"), Some(2)));
        assert_eq!(span["parentSpanId"], "c".repeat(16));
        let time = |name: &str| span[name].as_str().and_then(|text| text.parse::<i128>().ok()).expect(name);
        assert_eq!(time("endTimeUnixNano") - time("startTimeUnixNano"), 1_500_000);
        assert!(!span.to_string().contains("alice"));
    }

    #[tokio::test]
    async fn an_address_or_header_that_cannot_be_is_refused() {
        let tasks = Tasks::new();
        let start = |endpoint: &str, header: &str| {
            let headers = vec![(HeaderName::from_static("x-key"), Secret::new(header.to_owned()))];
            let export = SpanExport { endpoint: Url::parse(endpoint).expect("a URL"), headers };
            Spans::start(&export, Vec::new(), Counter::default(), &tasks)
                .map(drop)
                .map_err(|error| error.to_string())
        };
        assert_eq!(start("http://127.0.0.1:4318", "s3cret"), Ok(()));
        assert!(start("grpc://127.0.0.1:4317", "s3cret").is_err_and(|told| told.contains("grpc://")));
        assert!(start("http://127.0.0.1:4318", "s3cret\n").is_err_and(|told| !told.contains("s3cret")));
        tasks.stop();
    }
}
