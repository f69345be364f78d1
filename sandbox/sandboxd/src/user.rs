// SPDX-License-Identifier: Apache-2.0
//! Which user a caller wants something done as. There is one: the agent's own.

use crate::connect::{Code, Failure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{HeaderMap, header};

/// The agent's user (contracts.md, inside a sandbox).
const USER: &str = "user";

/// Whether the user of `Authorization: Basic`, which the SDKs send for nothing else, can be had.
pub(crate) fn of_header(headers: &HeaderMap) -> Result<(), Failure> {
    let basic = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some(encoded) = basic.and_then(|text| text.strip_prefix("Basic ")) else { return Ok(()) };
    let decoded = BASE64.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let name = decoded.as_deref().map(|text| text.split_once(':').map_or(text, |(name, _)| name));
    named(name.unwrap_or("?"))
}

/// Whether this user can be had.
pub(crate) fn named(name: &str) -> Result<(), Failure> {
    match name {
        USER | "" => Ok(()),
        other => {
            let detail = format!("there is no user `{}` here, only `{USER}`", other.escape_default());
            Err(Failure::new(Code::Unauthenticated, detail))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn asked(value: &'static str) -> Result<(), Code> {
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))]);
        of_header(&headers).map_err(|failure| failure.code)
    }

    #[test]
    fn only_the_agents_own_user_can_be_had() {
        assert_eq!(of_header(&HeaderMap::new()), Ok(()));
        assert_eq!(asked("Basic dXNlcjo="), Ok(()));
        assert_eq!(asked("Basic cm9vdDo="), Err(Code::Unauthenticated));
        assert_eq!(asked("Basic ?"), Err(Code::Unauthenticated));
        assert_eq!(asked("Bearer x"), Ok(()), "is no user");
    }
}
