// SPDX-License-Identifier: Apache-2.0
//! Tickets for who cannot send a key: a page in a browser that opens a WebSocket. One is for one
//! sandbox, good for half a minute, and used once; whoever has it may what the key that asked for it
//! may, for as long as that key exists.
//!
//! A ticket says who and what itself and is signed, so that every orchestrator of an installation
//! takes it; the database remembers those that were used.

use super::problems::Refused;
use super::sandboxes::named;
use super::{Answer, Api, Call, input, json};
use crate::keys::api::Caller;
use crate::keys::{hex, random};
use http::StatusCode;
use jiff::Timestamp;
use postern_common::clock;
use postern_common::id::{ApiKeyId, SandboxId};
use postern_common::problem::{Code, Problem};
use std::sync::Arc;

/// How long a ticket is good: a page asks for it right before it opens its socket.
const GOOD_SECONDS: i64 = 30;
/// 128 bits, so that no two are alike.
const NONCE_BYTES: usize = 16;
/// The longest text that is looked at; ours have some 160 characters.
const TICKET_BYTES: usize = 256;

/// `POST /sandbox/{id}/tickets`.
pub(super) async fn create(api: Arc<Api>, call: Call) -> Answer {
    input::Fields::read(&call.body)?.finish()?;
    let row = named(&api, &call, "id").await?;
    let nonce = random(NONCE_BYTES).map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    let until = clock::now().as_second() + GOOD_SECONDS;
    let said = format!("{}.{}.{until}.{}", call.caller()?.key, row.new.id, hex(nonce.reveal()));
    let ticket = format!("{said}.{}", sign(&api, &said));
    json(StatusCode::CREATED, &serde_json::json!({ "ticket": ticket, "good_for_seconds": GOOD_SECONDS }))
}

fn sign(api: &Api, said: &str) -> String {
    api.keys.digest(format!("ticket {said}").as_bytes())
}

/// Who comes with this ticket for this sandbox. It is used up by that.
/// `path` is the request's, which must be about that sandbox.
pub(super) async fn redeem(api: &Api, ticket: &str, path: &str) -> Result<Caller, Problem> {
    let refused = || {
        Problem::new(Code::KeyInvalid, "the ticket is not for this, was used, or is older than 30 seconds")
            .hint("ask for a fresh one: `POST /sandbox/{id}/tickets`")
    };
    let genuine = ticket.rsplit_once('.').filter(|(said, signature)| {
        ticket.len() <= TICKET_BYTES
            && aws_lc_rs::constant_time::verify_slices_are_equal(
                sign(api, said).as_bytes(),
                signature.as_bytes(),
            )
            .is_ok()
    });
    let mut parts = genuine.ok_or_else(refused)?.0.split('.');
    let mut next = || parts.next().ok_or_else(refused);
    let (key, of, until, nonce) = (next()?, next()?, next()?, next()?);
    let key = ApiKeyId::parse(key).map_err(|_never| refused())?;
    let of = SandboxId::parse(of).map_err(|_never| refused())?;
    let until =
        until.parse().ok().and_then(|seconds| Timestamp::from_second(seconds).ok()).ok_or_else(refused)?;
    let now = clock::now();
    let is_its =
        path.strip_prefix("/sandbox/").is_some_and(|rest| rest.split('/').next() == Some(of.as_str()));
    if !is_its || until < now || !api.store.spend_ticket(nonce, until, now).await.map_err(Refused::from)? {
        return Err(refused());
    }
    let row = api.store.key(&key).await.map_err(Refused::from)?.ok_or_else(refused)?;
    Ok(Caller {
        key: row.id,
        tenant: row.tenant,
        role: row.role,
        operations: row.operations,
        scope: row.scope,
    })
}
