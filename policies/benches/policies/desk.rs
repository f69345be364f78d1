// SPDX-License-Identifier: Apache-2.0
//! The tenant that is measured: 20 operations, 1,000 sessions, and the same for the crate alone.

use crate::Outcome;
use cedar_policy::{
    Authorizer, Context, Entities, EntityUid, PolicySet, Request, Schema, ValidationMode, Validator,
};
use jiff::Timestamp;
use postern_common::id::{BackendName, OperationId};
use postern_common::session::{Grant, Isolation, Peer, Session};
use postern_policies::{
    Action, PeerFacts, PolicySource, RequestFacts, SessionEntities, TenantPolicies, TenantSchema,
    TypedRequest, schema_from_openapi,
};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::Arc;

/// Operations of the backend.
pub(crate) const OPERATIONS: usize = 20;
/// Sessions that take turns.
pub(crate) const SESSIONS: usize = 1_000;

/// One policy for each of `count` users; the sessions' own user has one of them.
pub(crate) fn one_each(count: usize) -> String {
    let mut text = String::new();
    for number in 0..count {
        let user = if number == count / 2 { "alice".to_owned() } else { format!("user{number}") };
        let _ = writeln!(
            text,
            "@id(\"p{number}\") permit (principal in Postern::User::\"acme/{user}\", action, resource == Postern::Backend::\"acme/desk\") when {{ context.body.count < 1000 }};"
        );
    }
    text
}

/// One more of the same.
pub(crate) fn one_more(number: usize) -> String {
    format!(
        "@id(\"p{number}\") permit (principal in Postern::User::\"acme/user{number}\", action, resource) when {{ context.body.count < 1000 }};\n"
    )
}

/// Two without scope, eight with; four hold, six do not.
pub(crate) fn ten_candidates() -> String {
    let scopes = [
        "principal, action, resource",
        "principal, action, resource",
        "principal in Postern::User::\"acme/alice\", action, resource",
        "principal in Postern::Tenant::\"acme\", action, resource",
        "principal is Postern::Sandbox, action in desk::Action::\"write\", resource",
        "principal, action in desk::Action::\"write\", resource == Postern::Backend::\"acme/desk\"",
        "principal, action, resource in Postern::Tenant::\"acme\"",
        "principal in Postern::User::\"acme/alice\", action in desk::Action::\"write\", resource",
        "principal, action in desk::Action::\"write\", resource is Postern::Backend",
        "principal is Postern::Sandbox in Postern::Tenant::\"acme\", action, resource",
    ];
    let conditions = [
        ("permit", "context.body.count > 0"),
        ("forbid", "context.body.amount.greaterThan(decimal(\"1000.0\"))"),
        ("permit", "context.body.amount.lessThan(decimal(\"500.0\")) && context.body.count < 50"),
        ("permit", "context.query.q != \"\""),
        ("forbid", "context.body.count > 900 && context.query.q like \"*admin*\""),
        ("permit", "context.body has label && context.body.label == \"gold\""),
        ("forbid", "context.body has label && context.body.label like \"x*\""),
        ("forbid", "context.peer.kind == \"address\""),
        ("permit", "context.body.count == 7 && context.query.q == \"never\""),
        ("permit", "context.body.label == \"silver\" || context.body.count >= 1"),
    ];
    let mut text = String::new();
    for (number, (scope, (effect, condition))) in scopes.iter().zip(conditions).enumerate() {
        let condition = condition.replace("context.body.label == \"silver\" ||", "");
        let _ = writeln!(text, "@id(\"c{number}\") {effect} ({scope}) when {{ {condition} }};");
    }
    text
}

/// The backend's document: every operation takes a query parameter and a small body.
fn document() -> Value {
    let body = json!({"type": "object", "required": ["amount", "count"], "properties": {
        "amount": {"type": "number"}, "count": {"type": "integer"}, "label": {"type": "string"}}});
    let paths: Map<String, Value> = (0..OPERATIONS)
        .map(|number| {
            let operation = json!({"post": {
                "operationId": format!("op{number}"),
                "parameters": [{"name": "q", "in": "query", "required": true, "schema": {"type": "string"}},
                               {"name": "id", "in": "path", "required": true, "schema": {"type": "string"}}],
                "requestBody": {"required": true, "content": {"application/json": {"schema": body}}}}});
            (format!("/things{number}/{{id}}"), operation)
        })
        .collect();
    json!({"openapi": "3.1.0", "info": {"title": "desk", "version": "1"}, "paths": paths})
}

/// What the gateway holds of a request when it asks: parameters and body, parsed.
#[derive(Debug)]
pub(crate) struct Routed {
    path: Map<String, Value>,
    query: Map<String, Value>,
    header: Map<String, Value>,
    body: Value,
}

impl Routed {
    /// Each turn's query says something that no other says.
    pub(crate) fn new(turn: usize) -> Outcome<Self> {
        let object = |value: Value| value.as_object().cloned().ok_or("no object");
        Ok(Self {
            path: object(json!({"id": "a"}))?,
            query: object(json!({"q": format!("value {turn}")}))?,
            header: Map::new(),
            body: json!({"amount": 12.5, "count": 3}),
        })
    }
}

/// What both sides share.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) schema: Arc<TenantSchema>,
    pub(crate) actions: Vec<Arc<Action>>,
    sessions: Vec<SessionEntities>,
    cedar: Schema,
    validator: Validator,
}

impl Desk {
    pub(crate) fn new() -> Outcome<Self> {
        let name = BackendName::parse("desk")?;
        let document = postern_openapi::Document::parse(&document().to_string())
            .map_err(|mistakes| format!("{mistakes:?}"))?;
        let schema = TenantSchema::build(&"acme".parse()?, &[schema_from_openapi(&name, &document)])?;
        let actions = (0..OPERATIONS)
            .map(|number| {
                Ok(Arc::clone(
                    schema.action(&name, &OperationId::parse(&format!("op{number}"))?).ok_or("no action")?,
                ))
            })
            .collect::<Outcome<Vec<_>>>()?;
        let sessions = (0..SESSIONS)
            .map(|number| Ok(SessionEntities::build(&schema, &session(number)?)?))
            .collect::<Outcome<Vec<_>>>()?;
        let cedar: Schema = schema.text().parse()?;
        Ok(Self { actions, sessions, validator: Validator::new(cedar.clone()), cedar, schema })
    }

    fn request(&self, turn: usize) -> Outcome<TypedRequest> {
        self.typed(&Routed::new(turn)?, turn)
    }

    /// As many sessions that asked nothing yet, each with a request.
    pub(crate) fn newcomers(&self, count: usize) -> Outcome<Vec<(SessionEntities, TypedRequest)>> {
        let newcomer = |turn: usize| {
            let session = SessionEntities::build(&self.schema, &session(turn)?)?;
            let request = typed(&session, self.action(turn)?, &Routed::new(turn)?);
            Ok((session, request))
        };
        (0..count).map(newcomer).collect()
    }

    fn typed(&self, routed: &Routed, turn: usize) -> Outcome<TypedRequest> {
        Ok(typed(self.session(turn)?, self.action(turn)?, routed))
    }

    fn session(&self, turn: usize) -> Outcome<&SessionEntities> {
        Ok(self.sessions.get(turn % SESSIONS).ok_or("no session")?)
    }

    fn action(&self, turn: usize) -> Outcome<&Arc<Action>> {
        Ok(self.actions.get(turn % OPERATIONS).ok_or("no action")?)
    }
}

fn typed(session: &SessionEntities, action: &Arc<Action>, routed: &Routed) -> TypedRequest {
    let facts = RequestFacts {
        path: &routed.path,
        query: &routed.query,
        header: &routed.header,
        body: Some(&routed.body),
        peer: PeerFacts::Socket,
        now: Timestamp::UNIX_EPOCH,
    };
    TypedRequest::new(session, action, &facts)
}

fn sandbox(number: usize) -> String {
    let letter = |place: u32| char::from(b'a' + u8::try_from(number / 20_usize.pow(place) % 20).unwrap_or(0));
    format!("sandbox-aaaaaaaaa{}{}{}", letter(2), letter(1), letter(0))
}

fn session(number: usize) -> Outcome<Session> {
    Ok(Session {
        sandbox_id: sandbox(number).parse()?,
        tenant: "acme".parse()?,
        user_id: "alice".parse()?,
        conversation_id: format!("conversation {number}").parse()?,
        operations: vec![Grant::Everything],
        tokens: Vec::new(),
        peer: Peer::Address(std::net::Ipv4Addr::LOCALHOST.into()),
        expires_at: Timestamp::MAX,
        template: "default".parse()?,
        isolation: Isolation::Gvisor,
        labels: [("plan".to_owned(), "pro".to_owned())].into(),
        claims: Map::new(),
    })
}

/// Our side, with the baseline in force.
#[derive(Debug)]
pub(crate) struct OurSide {
    policies: TenantPolicies,
}

impl OurSide {
    pub(crate) fn load(desk: &Desk, text: &str) -> Outcome<Self> {
        let source = PolicySource { name: "policies/all.cedar".to_owned(), text: text.to_owned() };
        let policies = TenantPolicies::load(&desk.schema, Some(&[source]))
            .map_err(|mistakes| mistakes.first().map_or(String::new(), ToString::to_string))?;
        let this = Self { policies };
        let decision = this.policies.decide(desk.session(0)?, &desk.request(0)?);
        if decision.is_allowed() {
            Ok(this)
        } else {
            Err(format!("not what is to be measured: {decision:?}").into())
        }
    }

    /// Requests that are ready, one for each session.
    pub(crate) fn requests<'d>(&self, desk: &'d Desk) -> Outcome<Vec<(&'d SessionEntities, TypedRequest)>> {
        (0..SESSIONS).map(|turn| Ok((desk.session(turn)?, desk.request(turn)?))).collect()
    }

    pub(crate) fn decide(&self, requests: &[(&SessionEntities, TypedRequest)], turn: usize) {
        if let Some((session, request)) = requests.get(turn % SESSIONS) {
            black_box(self.policies.decide(session, request));
        }
    }

    /// A session's first request to an operation, of which nothing is settled yet.
    pub(crate) fn decide_first(&self, newcomers: &[(SessionEntities, TypedRequest)], turn: usize) {
        if let Some((session, request)) = newcomers.get(turn) {
            black_box(self.policies.decide(session, request));
        }
    }

    /// Builds the request too, from what the gateway holds of it.
    pub(crate) fn build_and_decide(&self, desk: &Desk, routed: &[Routed], turn: usize) {
        let Some(routed) = routed.get(turn % routed.len()) else { return };
        if let (Ok(session), Ok(request)) = (desk.session(turn), desk.typed(routed, turn)) {
            black_box(self.policies.decide(session, &request));
        }
    }
}

/// The crate alone, over the tenant's policies without the baseline.
#[derive(Debug)]
pub(crate) struct CrateSide {
    policies: PolicySet,
    cases: Vec<(Request, Entities)>,
}

impl CrateSide {
    pub(crate) fn parse_and_validate(desk: &Desk, text: &str) -> Outcome {
        let policies: PolicySet = text.parse()?;
        let result = desk.validator.validate(&policies, ValidationMode::Strict);
        if result.validation_passed() { Ok(()) } else { Err(result.into()) }
    }

    pub(crate) fn load(desk: &Desk, text: &str) -> Outcome<Self> {
        let cases = (0..100).map(|turn| Self::case(desk, turn)).collect::<Outcome<Vec<_>>>()?;
        let this = Self { policies: text.parse()?, cases };
        let (request, entities) = this.cases.first().ok_or("no case")?;
        let response = Authorizer::new().is_authorized(request, &this.policies, entities);
        if response.decision() == cedar_policy::Decision::Allow {
            Ok(this)
        } else {
            Err(format!("{response:?}").into())
        }
    }

    fn case(desk: &Desk, turn: usize) -> Outcome<(Request, Entities)> {
        let id = |of_type: &str, id: &str| json!({"type": format!("Postern::{of_type}"), "id": id});
        let sandbox = format!("acme/{}", sandbox(turn));
        let entities = json!([
            {"uid": id("Tenant", "acme"), "attrs": {}, "parents": []},
            {"uid": id("User", "acme/alice"), "attrs": {}, "parents": [id("Tenant", "acme")]},
            {"uid": id("Labels", &sandbox), "attrs": {}, "parents": [], "tags": {"plan": "pro"}},
            {"uid": id("Claims", &sandbox), "attrs": {}, "parents": []},
            {"uid": id("Backend", "acme/desk"), "attrs": {"tenant": id("Tenant", "acme")}, "parents": [id("Tenant", "acme")]},
            {"uid": id("Sandbox", &sandbox), "parents": [id("User", "acme/alice")], "attrs": {
                "tenant": id("Tenant", "acme"), "user": id("User", "acme/alice"), "conversation": "c", "template": "default",
                "operations": ["*"], "labels": id("Labels", &sandbox), "isolation": "gvisor"}},
        ]);
        let entities = Entities::from_json_value(entities, Some(&desk.cedar))?;
        let action: EntityUid = format!("desk::Action::\"op{}\"", turn % OPERATIONS).parse()?;
        let context = json!({
            "path": {"id": "a"}, "query": {"q": format!("value {turn}")}, "header": {},
            "body": {"amount": {"__extn": {"fn": "decimal", "arg": "12.5"}}, "count": 3},
            "claims": {"__entity": id("Claims", &sandbox)}, "peer": {"kind": "socket"},
            "now": {"__extn": {"fn": "datetime", "arg": "1970-01-01T00:00:00.000Z"}}});
        let context = Context::from_json_value(context, Some((&desk.cedar, &action)))?;
        let principal: EntityUid = format!("Postern::Sandbox::\"{sandbox}\"").parse()?;
        let resource: EntityUid = "Postern::Backend::\"acme/desk\"".parse()?;
        Ok((Request::new(principal, action, resource, context, Some(&desk.cedar))?, entities))
    }

    pub(crate) fn decide(&self, turn: usize) {
        if let Some((request, entities)) = self.cases.get(turn % self.cases.len()) {
            black_box(Authorizer::new().is_authorized(request, &self.policies, entities));
        }
    }
}
