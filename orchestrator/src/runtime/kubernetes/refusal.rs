// SPDX-License-Identifier: Apache-2.0
//! What an answer of the API server means for whoever runs the cluster.

use super::facts::is_quota;
use crate::runtime::Trouble;
use http::StatusCode;

/// What is wrong, and what the API server said of it.
pub(super) fn of(error: &kube::Error) -> (Trouble, String) {
    let kube::Error::Api(status) = error else {
        return (Trouble::Unreachable, chain(error));
    };
    let message = status.message.clone();
    let trouble = match StatusCode::from_u16(status.code).unwrap_or_default() {
        // An object that is not there has a name; a kind that is not there has none.
        StatusCode::NOT_FOUND if status.details.as_ref().is_none_or(|it| it.name.is_empty()) => Trouble::Crds,
        StatusCode::FORBIDDEN if is_quota(&message) => Trouble::Quota,
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Trouble::Rights,
        StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST | StatusCode::CONFLICT => Trouble::Refused,
        StatusCode::UNPROCESSABLE_ENTITY => Trouble::Refused,
        _ => Trouble::Unreachable,
    };
    (trouble, message)
}

/// Whether what was asked for is not there.
pub(super) fn is_absent(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == StatusCode::NOT_FOUND.as_u16())
        && of(error).0 != Trouble::Crds
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;
    use kube::core::response::StatusDetails;

    fn api(code: u16, message: &str, name: &str) -> kube::Error {
        let details: StatusDetails =
            serde_json::from_value(serde_json::json!({ "name": name })).expect("is that much");
        let status = Status::failure(message, "reason").with_code(code).with_details(details);
        kube::Error::Api(status.boxed())
    }

    #[test]
    fn each_refusal_has_its_meaning() {
        let cases = [
            (api(404, "the server could not find the requested resource", ""), Trouble::Crds),
            (api(404, "sandboxclaims \"a\" not found", "a"), Trouble::Refused),
            (api(403, "exceeded quota: claims, requested: 1", "a"), Trouble::Quota),
            (api(403, "User \"x\" cannot patch resource", "a"), Trouble::Rights),
            (api(401, "Unauthorized", ""), Trouble::Rights),
            (api(422, "spec.warmPoolRef: Required value", "a"), Trouble::Refused),
            (api(500, "etcdserver: request timed out", ""), Trouble::Unreachable),
        ];
        for (error, trouble) in cases {
            assert_eq!(of(&error).0, trouble, "{error}");
        }
    }

    #[test]
    fn an_object_that_is_gone_is_not_a_kind_that_was_never_there() {
        assert!(is_absent(&api(404, "not found", "a")));
        assert!(!is_absent(&api(404, "the server could not find the requested resource", "")));
        assert!(!is_absent(&api(403, "not yours", "a")));
    }
}
