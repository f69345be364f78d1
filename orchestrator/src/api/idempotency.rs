// SPDX-License-Identifier: Apache-2.0
//! `Idempotency-Key`: a repeat gets what the first call got, and a key that comes with another wish is
//! refused. With `exec` the sandbox's shim knows the key, for as long as it keeps the command's output;
//! the rest of this is about create calls, whose sandbox may have ended since.
//!
//! A key belongs to its tenant, is remembered for a day, and only of calls that got a sandbox: what
//! was refused or did not start may be tried again with the same key. The token is no part of the
//! answer that is repeated: it is never stored, so a repeat gets a fresh one.

use super::Call;
use crate::keys::InstallationKeys;
use crate::store::{IdempotencyKey, KeptAnswer};
use http::HeaderValue;
use postern_common::problem::{Code, Problem};
use serde_json::Value;

/// The request header.
const HEADER: &str = "idempotency-key";
/// Says of an answer that it repeats one.
pub(super) const REPLAYED: &str = "idempotency-replayed";
/// A UUID has 36 characters; longer ones are names of jobs.
const KEY_BYTES: usize = 255;

/// The call's key, if it has one, with a digest of what it asks for.
pub(super) fn read(keys: &InstallationKeys, call: &Call) -> Result<Option<IdempotencyKey>, Problem> {
    let mut given = call.headers.get_all(HEADER).iter();
    let Some(value) = given.next() else { return Ok(None) };
    if given.next().is_some() {
        return Err(malformed("is there more than once"));
    }
    let key = unquoted(value)?;
    // As it is understood, not as it was spelled: blanks and the order of fields mean nothing.
    let asked = match serde_json::from_slice::<Value>(&call.body) {
        Ok(mut body) => {
            body.sort_all_objects();
            body.to_string()
        }
        // The handler says what is wrong with it.
        Err(_unreadable) => String::new(),
    };
    Ok(Some(IdempotencyKey {
        key: keys.digest(format!("idempotency-key {key}").as_bytes()),
        fingerprint: keys.digest(format!("{} {asked}", call.operation).as_bytes()),
    }))
}

/// A structured field's string (RFC 8941 §3.3.3), or the same without quotes, as many clients send it.
fn unquoted(value: &HeaderValue) -> Result<&str, Problem> {
    let text = value.to_str().unwrap_or_default();
    let key = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let is_plain = key.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\');
    if key.is_empty() || key.len() > KEY_BYTES || !is_plain {
        return Err(malformed("is not 1 to 255 visible characters without quotes and backslashes"));
    }
    Ok(key)
}

fn malformed(how: &str) -> Problem {
    Problem::new(Code::RequestMalformed, format!("the header `Idempotency-Key` {how}"))
        .hint("send one fresh key, such as a UUID, with each new wish, and the same one when you try again")
}

/// Whether the call that has this answer asked for the same.
pub(super) fn is_repeat(key: &IdempotencyKey, kept: &KeptAnswer) -> Result<(), Problem> {
    if key.fingerprint == kept.fingerprint {
        return Ok(());
    }
    Err(reused())
}

/// The key came with another wish before.
pub(super) fn reused() -> Problem {
    Problem::new(Code::IdempotencyKeyReused, "this `Idempotency-Key` came with another body before")
        .hint("send a fresh key with a new wish; to try again, send exactly the body of the first call")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Result<String, Code> {
        let value = HeaderValue::from_bytes(text.as_bytes()).expect("a header");
        unquoted(&value).map(str::to_owned).map_err(|problem| problem.code)
    }

    #[test]
    fn a_key_may_be_quoted() {
        assert_eq!(key("\"8e03978e-40d5\"").as_deref(), Ok("8e03978e-40d5"));
        assert_eq!(key("8e03978e-40d5").as_deref(), Ok("8e03978e-40d5"));
        assert_eq!(key(&"k".repeat(KEY_BYTES)).map(|key| key.len()), Ok(KEY_BYTES));
    }

    #[test]
    fn what_is_no_key_is_malformed() {
        for wrong in ["", "\"\"", "a b", "\"a", "a\"b", "a\\b", "ä", &"k".repeat(KEY_BYTES + 1)] {
            assert_eq!(key(wrong), Err(Code::RequestMalformed), "{wrong}");
        }
    }
}
