// SPDX-License-Identifier: Apache-2.0
//! The request path. Every stage is listed here, in order; a stage never calls the next.

use crate::authorize::{self, Granted, Judged};
use crate::body::Admitted;
use crate::decision::Draft;
use crate::filters::{self, Filtered};
use crate::identify::Caller;
use crate::registry::Source;
use crate::reject::Reject;
use crate::response::{self, Body};
use crate::snapshot::TenantRules;
use crate::{
    Gateway, body, broker, files, head, identify, identity, limits, meaning, route, trace, validate,
    websocket,
};
use http::{Request, Response};
use hyper::body::Incoming;
use postern_common::clock;
use std::time::Instant;

/// Answers one request: what the backend said, or why it was not asked.
pub(crate) async fn handle(gateway: &Gateway, source: &Source, request: Request<Incoming>) -> Response<Body> {
    let mut draft = Draft::new(clock::now(), request.method());
    match forward(gateway, source, request, &mut draft).await {
        Ok(response) => {
            gateway.metrics.request(draft.labels(), "allow", draft.begun.elapsed());
            let place = draft.place();
            if !draft.is_routine {
                gateway.record(draft.allowed(), place.as_ref());
            }
            response
        }
        Err(reject) => {
            reject.log(draft.request_id(), draft.id());
            gateway.metrics.refusal(reject.code());
            gateway.metrics.request(draft.labels(), reject.outcome(), draft.begun.elapsed());
            let answer = reject.response(gateway.identities.audience(), draft.request_id(), draft.id());
            let mut response = answer.map(|bytes| Body::Own(bytes.into()));
            response::mark(response.headers_mut(), draft.request_id());
            let place = draft.place();
            gateway.record(draft.refused(&reject), place.as_ref());
            response
        }
    }
}

async fn forward(
    gateway: &Gateway,
    source: &Source,
    request: Request<Incoming>,
    draft: &mut Draft,
) -> Result<Response<Body>, Reject> {
    gateway.freshness.check()?;
    gateway.audit.check()?;
    let snapshot = gateway.snapshot();
    let mut request = head::parse(request)?;
    draft.trace(trace::go_on(&mut request.headers, gateway.spans.is_some()));
    let caller =
        identify::caller(&gateway.identities, &gateway.registry, source, &request.authorization, draft.at())
            .await?;
    draft.caller(&caller);
    draft.stage("identify");
    if files::is_sync(&caller) {
        // A sandbox's sync: it may do this and nothing else, and no tenant has a say in it.
        return files::carry(gateway, &caller, request, draft).await;
    }
    let rules = snapshot.rules_of(&caller)?;
    draft.rules(&rules);
    let budget = rules.budget(&caller, draft.begun);
    limits::spend(&budget, draft.begun)?;
    let mut routed = route::find(&rules, &caller, request)?;
    let asked = routed.websocket.take();
    draft.call(&routed.call);
    let backend = routed.call.backend.clone();
    limits::spend_operation(&budget, routed.call.operation.limiter.as_deref(), draft.begun)?;
    draft.stage("route");
    let rooms = rules.rooms(&caller, &gateway.bodies);
    let admitted = body::admit(routed, &caller.ended, &rooms).await?;
    draft.stage("body");
    let granted = judge(gateway, &rules, &caller, admitted, draft).await?;
    let granted = match filters::on_request(gateway, &caller, granted, draft).await? {
        Filtered::Same(granted) => *granted,
        Filtered::Changed(request) => judge(gateway, &rules, &caller, *request, draft).await?,
    };
    let answering = filters::answers_to(&granted)?;
    let permit = limits::permit(&budget, &backend.concurrent)?;
    let sealed = broker::attach(granted, &caller, draft.request_id(), &gateway.asserter)?;
    still_welcome(gateway, &caller)?;
    let answer = gateway.upstream.send(sealed, permit, &caller.ended).await?;
    draft.upstream(answer.head.status.as_u16(), answer.took);
    draft.stage("upstream");
    let mut answer = filters::on_response(gateway, &caller, &rooms, answering, answer, draft).await?;
    let opened = answer.opened.take();
    let response = response::pass_on(answer, draft.request_id(), &budget);
    Ok(websocket::join(gateway, &caller, asked.zip(opened), response))
}

/// Judges in the tenant's turn, so that no tenant's judging takes all workers, and off the workers
/// what takes long.
async fn judge(
    gateway: &Gateway,
    rules: &TenantRules,
    caller: &Caller,
    request: Admitted,
    draft: &mut Draft,
) -> Result<Granted, Reject> {
    let turn = rules.judging.turn(rules.is_heavy(&request.call)).await?;
    draft.stage("turn");
    turn.take(|| judged(gateway, rules, caller, request, draft))
}

/// Meaning, identity, schema, policies: in this order, again for whatever a filter changed.
fn judged(
    gateway: &Gateway,
    rules: &TenantRules,
    caller: &Caller,
    mut request: Admitted,
    draft: &mut Draft,
) -> Result<Granted, Reject> {
    meaning::check(&mut request)?;
    let overridden = identity::overwrite(&caller.session.session, request)?;
    let valid = validate::check(overridden)?;
    draft.stage("validate");
    let begun = Instant::now();
    let Judged { outcome, watched } = authorize::decide(rules, caller, valid, (draft.id(), draft.at()));
    gateway.metrics.policy(begun.elapsed());
    gateway.metrics.shadow(&watched.shadow, outcome.is_ok());
    draft.watched(watched);
    draft.stage("authorize");
    let granted = outcome?;
    draft.granted(&granted);
    Ok(granted)
}

/// Reads registry, expiry and freshness again: minutes may have passed since they were read.
fn still_welcome(gateway: &Gateway, caller: &Caller) -> Result<(), Reject> {
    let now = clock::now();
    gateway.freshness.check()?;
    gateway.registry.judge_again(caller, now)?;
    if caller.claims.exp <= clock::unix_seconds(now) {
        return Err(Reject::SessionExpired);
    }
    Ok(())
}
