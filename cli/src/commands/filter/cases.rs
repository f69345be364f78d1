// SPDX-License-Identifier: Apache-2.0
//! Cases as data: a request (and an answer) in; a verdict and changes out.
//!
//! ```toml
//! [[case]]
//! name = "a card number is refused"
//! config = { fields = ["note"] }                       # the attachment's settings
//! session = { user_id = "alice", claims = { plan = "free" } }
//! request = { method = "POST", path = "/notes", operation = "addNote", json = { note = "4111…" } }
//! response = { status = 200, body = "…" }              # `parts = ["…", "…"]` for one that streams
//! repeat = 1                                           # how often; the last time counts
//! expect = { verdict = "reject", status = 422, code = "card-number", counters = { refused = 1 } }
//! ```

use super::folder::read_text;
use super::rig::Rig;
use crate::failure::Failure;
use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use postern_common::id::{
    BackendName, ConversationId, OperationId, SandboxId, TemplateName, TenantId, UserId,
};
use postern_common::session::{Isolation, Peer, Session};
use postern_filter_engine::manifest::Phase;
use postern_filter_engine::{
    Called, Changes, ConfiguredFilter, Context, FilterFailure, LogLine, Outcome, Part, RequestView,
    ResponseView,
};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

type Texts = BTreeMap<String, String>;

/// One case.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Case {
    pub(super) name: String,
    #[serde(default)]
    config: Map<String, Value>,
    #[serde(default)]
    session: CaseSession,
    #[serde(default)]
    request: CaseRequest,
    response: Option<CaseResponse>,
    #[serde(default = "once")]
    repeat: u32,
    #[serde(default)]
    expect: Expect,
}

const fn once() -> u32 {
    1
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CaseSession {
    user_id: Option<String>,
    conversation_id: Option<String>,
    claims: Map<String, Value>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CaseRequest {
    method: Option<String>,
    path: Option<String>,
    template: Option<String>,
    backend: Option<String>,
    operation: Option<String>,
    parameters: Texts,
    query: Texts,
    headers: Texts,
    body: Option<String>,
    json: Option<Value>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CaseResponse {
    status: Option<u16>,
    headers: Texts,
    body: Option<String>,
    json: Option<Value>,
    parts: Option<Vec<String>>,
}

/// What is to come out; what is left out may be anything.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Expect {
    /// `continue`, `reject` or `failed`.
    verdict: Option<String>,
    status: Option<u16>,
    /// The rejection's code, or the failure's cause.
    code: Option<String>,
    message: Option<String>,
    /// The request that goes on.
    request: Option<ExpectedMessage>,
    /// The answer that goes back.
    response: Option<ExpectedMessage>,
    log: Option<Vec<String>>,
    counters: Option<BTreeMap<String, u64>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ExpectedMessage {
    headers: Texts,
    no_headers: Vec<String>,
    query: Option<Texts>,
    path: Option<String>,
    body: Option<String>,
    json: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    case: Vec<Case>,
}

/// The cases of one file.
pub(super) fn read(path: &Path) -> Result<Vec<Case>, Failure> {
    let text = read_text(path)?;
    let file: File = toml::from_str(&text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        anyhow!("{}:{line}: {}", path.display(), error.message())
    })?;
    Ok(file.case)
}

/// What came out of a case.
#[derive(Debug, Default)]
struct Came {
    verdict: &'static str,
    status: Option<u16>,
    code: Option<String>,
    message: Option<String>,
    request: Message,
    response: Option<Message>,
    log: Vec<String>,
}

#[derive(Debug, Default)]
struct Message {
    headers: HeaderMap,
    query: Vec<(String, String)>,
    path: String,
    body: Vec<u8>,
}

impl Case {
    /// Runs the case; every difference to what it expects, in words.
    pub(super) async fn run(&self, rig: &Rig) -> Result<Vec<String>, Failure> {
        let filter = rig.fresh(&self.config)?;
        let context = self.context().with_context(|| format!("case `{}`", self.name))?;
        let mut came = Came::default();
        for _ in 0..self.repeat.max(1) {
            came = self.pass(&filter, &context).await?;
        }
        Ok(self.differences(&came, &filter))
    }

    /// The request of the case, for one call after the other.
    pub(super) fn context(&self) -> anyhow::Result<Context> {
        Ok(Context { session: Arc::new(self.session()?), request: Arc::new(self.view()?) })
    }

    /// The filter with the case's settings.
    pub(super) fn filter(&self, rig: &Rig) -> Result<ConfiguredFilter, Failure> {
        rig.fresh(&self.config)
    }

    /// The answer that the filter judges, if the case has one.
    pub(super) fn answer(&self) -> anyhow::Result<Option<ResponseView>> {
        self.response.as_ref().map(CaseResponse::view).transpose()
    }

    async fn pass(&self, filter: &ConfiguredFilter, context: &Context) -> Result<Came, Failure> {
        let manifest = filter.filter().manifest();
        let mut came =
            Came { verdict: "continue", request: Message::of(&context.request), ..Came::default() };
        if manifest.has(Phase::Request) {
            let changes = came.take(filter.on_request(context.clone()).await);
            if let Some(changes) = changes {
                came.request.change(&changes);
            }
        }
        if came.verdict != "continue" || !manifest.has(Phase::Response) {
            return Ok(came);
        }
        let Some(response) = &self.response else { return Ok(came) };
        let view = response.view()?;
        let mut answer =
            Message { headers: view.headers.clone(), body: response.bytes(), ..Message::default() };
        if manifest.response_chunk.is_some() {
            answer.body = response.stream(filter, context, &mut came, &mut answer.headers).await?;
        } else {
            let body = manifest.response_body.map(|_| Bytes::from(answer.body.clone()));
            let called = filter.on_response(context.clone(), Arc::new(ResponseView { body, ..view })).await;
            if let Some(changes) = came.take(called) {
                answer.change(&changes);
            }
        }
        came.response = Some(answer);
        Ok(came)
    }

    fn session(&self) -> anyhow::Result<Session> {
        let own = &self.session;
        let id = |given: &Option<String>, usual: &str| given.clone().unwrap_or_else(|| usual.to_owned());
        Ok(Session {
            sandbox_id: SandboxId::from_random([0; 12]),
            tenant: TenantId::parse("local")?,
            user_id: UserId::parse(&id(&own.user_id, "test-user"))?,
            conversation_id: ConversationId::parse(&id(&own.conversation_id, "test-conversation"))?,
            operations: Vec::new(),
            tokens: Vec::new(),
            peer: Peer::Address(std::net::Ipv4Addr::LOCALHOST.into()),
            expires_at: jiff::Timestamp::MAX,
            template: TemplateName::parse("default")?,
            isolation: Isolation::Namespaces,
            labels: BTreeMap::new(),
            claims: own.claims.clone(),
        })
    }

    fn view(&self) -> anyhow::Result<RequestView> {
        let own = &self.request;
        let has_body = own.body.is_some() || own.json.is_some();
        let method = own.method.as_deref().unwrap_or(if has_body { "POST" } else { "GET" });
        let path = own.path.clone().unwrap_or_else(|| "/".to_owned());
        let operation = own.operation.clone().unwrap_or_else(|| method.to_ascii_lowercase());
        let body = match (&own.json, &own.body) {
            (Some(json), _) => json.to_string(),
            (None, text) => text.clone().unwrap_or_default(),
        };
        let mut headers = headers(&own.headers)?;
        if own.json.is_some() && !headers.contains_key(http::header::CONTENT_TYPE) {
            headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        Ok(RequestView {
            method: Method::from_bytes(method.to_ascii_uppercase().as_bytes())?,
            backend: BackendName::parse(own.backend.as_deref().unwrap_or("test-backend"))?,
            operation: OperationId::parse(&operation)?,
            path_template: own.template.clone().unwrap_or_else(|| path.clone()).into(),
            path,
            path_parameters: own.parameters.clone().into_iter().collect(),
            query: own.query.clone().into_iter().collect(),
            headers: Arc::new(headers),
            body: Some(Bytes::from(body)),
        })
    }

    fn differences(&self, came: &Came, filter: &ConfiguredFilter) -> Vec<String> {
        let mut wrong = Vec::new();
        let expect = &self.expect;
        let mut same = |what: &str, wanted: Option<String>, got: String| {
            if let Some(wanted) = wanted.filter(|wanted| *wanted != got) {
                wrong.push(format!("{what}: expected {wanted}, got {got}"));
            }
        };
        let text = |value: &Option<String>| value.as_ref().map(|text| format!("`{text}`"));
        let none = || "none".to_owned();
        let explained = match (&came.code, came.verdict) {
            (Some(code), "failed") => {
                format!("`failed` ({code}: {})", came.message.clone().unwrap_or_default())
            }
            (_, verdict) => format!("`{verdict}`"),
        };
        let verdict = expect.verdict.as_ref().filter(|wanted| *wanted != came.verdict);
        same("verdict", verdict.map(|wanted| format!("`{wanted}`")), explained);
        same(
            "status",
            expect.status.map(|it| it.to_string()),
            came.status.map_or_else(none, |it| it.to_string()),
        );
        same("code", text(&expect.code), text(&came.code).unwrap_or_else(none));
        same("message", text(&expect.message), text(&came.message).unwrap_or_else(none));
        same("log", expect.log.as_ref().map(|log| format!("{log:?}")), format!("{:?}", came.log));
        let counters: BTreeMap<String, u64> = filter
            .filter()
            .counters()
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| (name.to_owned(), count))
            .collect();
        same("counters", expect.counters.as_ref().map(|it| format!("{it:?}")), format!("{counters:?}"));
        if let Some(expected) = &expect.request {
            expected.compare("request", &came.request, &mut wrong);
        }
        match (&expect.response, &came.response) {
            (Some(expected), Some(answer)) => expected.compare("response", answer, &mut wrong),
            (Some(_), None) => wrong.push("response: expected one, but the filter judged none".to_owned()),
            (None, _) => {}
        }
        wrong
    }
}

impl CaseResponse {
    fn bytes(&self) -> Vec<u8> {
        match (&self.parts, &self.json) {
            (Some(parts), _) => parts.concat().into_bytes(),
            (None, Some(json)) => json.to_string().into_bytes(),
            (None, None) => self.body.clone().unwrap_or_default().into_bytes(),
        }
    }

    fn view(&self) -> anyhow::Result<ResponseView> {
        let mut headers = headers(&self.headers)?;
        if self.json.is_some() && !headers.contains_key(http::header::CONTENT_TYPE) {
            headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let status = StatusCode::from_u16(self.status.unwrap_or(200))?;
        let body = Some(Bytes::from(self.bytes()));
        Ok(ResponseView { status, headers, body, part: Some(Part { index: 0, is_last: true }) })
    }

    /// Shows the parts one by one, as the gateway does; what goes on.
    async fn stream(
        &self,
        filter: &ConfiguredFilter,
        context: &Context,
        came: &mut Came,
        headers: &mut HeaderMap,
    ) -> Result<Vec<u8>, Failure> {
        let whole = [String::from_utf8_lossy(&self.bytes()).into_owned()];
        let parts = self.parts.as_deref().unwrap_or(&whole);
        let view = self.view()?;
        let (mut passed, mut kept) = (Vec::new(), Vec::new());
        for (index, part) in parts.iter().enumerate() {
            let body = [kept.as_slice(), part.as_bytes()].concat();
            let part =
                Part { index: u64::try_from(index).unwrap_or(u64::MAX), is_last: index + 1 == parts.len() };
            let view = ResponseView { body: Some(body.clone().into()), part: Some(part), ..view.clone() };
            let changes = came.take(filter.on_response(context.clone(), Arc::new(view)).await);
            if came.verdict != "continue" {
                break;
            }
            let length = changes.as_ref().map_or(0, Changes::kept);
            let (goes_on, stays) = body.split_at(body.len().saturating_sub(length));
            let replaced = changes.as_ref().and_then(Changes::body);
            passed.extend_from_slice(replaced.map_or(goes_on, |new| new));
            kept = stays.to_vec();
            if let Some(changes) = changes {
                changes.apply_to_headers(headers);
            }
        }
        Ok(passed)
    }
}

impl Came {
    /// Notes what a call came to; the changes, if it asked for any.
    fn take(&mut self, called: Called) -> Option<Changes> {
        self.log.extend(called.logs.into_iter().map(|LogLine { message, .. }| message));
        match called.outcome {
            Ok(Outcome::Continue) => None,
            Ok(Outcome::Changed(changes)) => Some(changes),
            Ok(Outcome::Reject(rejection)) => {
                self.verdict = "reject";
                self.status = Some(rejection.status());
                self.code = Some(rejection.code().to_owned());
                self.message = Some(rejection.message().to_owned());
                None
            }
            Err(failure) => {
                self.failed(&failure);
                None
            }
        }
    }

    fn failed(&mut self, failure: &FilterFailure) {
        self.verdict = "failed";
        self.code = Some(failure.cause().to_owned());
        self.message = Some(failure.to_string());
    }
}

impl Message {
    fn of(request: &RequestView) -> Self {
        Self {
            headers: HeaderMap::clone(&request.headers),
            query: request.query.clone(),
            path: request.path.clone(),
            body: request.body.clone().unwrap_or_default().to_vec(),
        }
    }

    fn change(&mut self, changes: &Changes) {
        changes.apply_to_headers(&mut self.headers);
        changes.apply_to_query(&mut self.query);
        if let Some(path) = changes.path() {
            path.clone_into(&mut self.path);
        }
        if let Some(body) = changes.body() {
            self.body = body.to_vec();
        }
    }
}

impl ExpectedMessage {
    fn compare(&self, place: &str, came: &Message, wrong: &mut Vec<String>) {
        for (name, wanted) in &self.headers {
            let got = came.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
            if got.as_deref() != Some(wanted) {
                let got = got.unwrap_or_else(|| "none".into());
                wrong.push(format!("{place}.headers.{name}: expected `{wanted}`, got `{got}`"));
            }
        }
        for name in self.no_headers.iter().filter(|name| came.headers.contains_key(*name)) {
            wrong.push(format!("{place}.headers.{name}: expected none"));
        }
        let query: Texts = came.query.iter().cloned().collect();
        if let Some(wanted) = self.query.as_ref().filter(|wanted| **wanted != query) {
            wrong.push(format!("{place}.query: expected {wanted:?}, got {query:?}"));
        }
        if let Some(wanted) = self.path.as_ref().filter(|wanted| **wanted != came.path) {
            wrong.push(format!("{place}.path: expected `{wanted}`, got `{}`", came.path));
        }
        let body = String::from_utf8_lossy(&came.body);
        if let Some(wanted) = self.body.as_ref().filter(|wanted| **wanted != body) {
            wrong.push(format!("{place}.body: expected `{wanted}`, got `{body}`"));
        }
        if let Some(wanted) = &self.json {
            match serde_json::from_slice::<Value>(&came.body) {
                Ok(got) if got == *wanted => {}
                _ => wrong.push(format!("{place}.json: expected {wanted}, got `{body}`")),
            }
        }
    }
}

fn headers(texts: &Texts) -> anyhow::Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in texts {
        let header = HeaderName::from_bytes(name.as_bytes()).with_context(|| format!("header `{name}`"))?;
        headers.insert(header, HeaderValue::from_str(value).with_context(|| format!("header `{name}`"))?);
    }
    Ok(headers)
}
