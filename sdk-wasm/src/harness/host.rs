// SPDX-License-Identifier: Apache-2.0
//! The host's functions, answered from the [`Case`](super::Case) of this thread. Names and types
//! are those that the generated bindings have on `wasm32`.

fn joined(headers: &[(String, String)], name: &str) -> Option<String> {
    let values: Vec<&str> = headers
        .iter()
        .filter(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
        .collect();
    (!values.is_empty()).then(|| values.join(", "))
}

fn names(headers: &[(String, String)]) -> Vec<String> {
    let mut names: Vec<String> = headers.iter().map(|(name, _)| name.clone()).collect();
    names.dedup();
    names
}

fn part(body: &[u8], offset: u64, length: u32) -> Vec<u8> {
    let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    body.iter().skip(skipped).take(length).copied().collect()
}

fn length(body: &[u8]) -> u64 {
    u64::try_from(body.len()).unwrap_or(u64::MAX)
}

pub(crate) mod request {
    use super::super::{Change, with};

    pub(crate) struct Field {
        pub(crate) name: String,
        pub(crate) value: String,
    }

    pub(crate) fn method() -> String {
        with(|call| call.case.method.clone())
    }

    pub(crate) fn backend() -> String {
        with(|call| call.case.backend.clone())
    }

    pub(crate) fn operation() -> String {
        with(|call| call.case.operation.clone())
    }

    pub(crate) fn path() -> String {
        with(|call| call.case.path.clone())
    }

    pub(crate) fn path_template() -> String {
        with(|call| call.case.template.clone())
    }

    pub(crate) fn path_parameter(name: &str) -> Option<String> {
        with(|call| call.case.path_parameters.get(name).cloned())
    }

    pub(crate) fn query_parameter(name: &str) -> Option<String> {
        with(|call| {
            let mut query = call.case.query.iter();
            query.find(|(key, _)| key == name).map(|(_, value)| value.clone())
        })
    }

    pub(crate) fn query() -> Vec<Field> {
        with(|call| {
            let fields = call.case.query.iter().cloned();
            fields.map(|(name, value)| Field { name, value }).collect()
        })
    }

    pub(crate) fn header(name: &str) -> Option<String> {
        with(|call| super::joined(&call.case.headers, name))
    }

    pub(crate) fn header_names() -> Vec<String> {
        with(|call| super::names(&call.case.headers))
    }

    pub(crate) fn body_length() -> u64 {
        with(|call| super::length(&call.case.body))
    }

    pub(crate) fn body(offset: u64, length: u32) -> Vec<u8> {
        with(|call| super::part(&call.case.body, offset, length))
    }

    fn change(change: Change) {
        with(|call| call.changes.push(change));
    }

    pub(crate) fn set_header(name: &str, value: &str) {
        change(Change::SetHeader(name.to_owned(), value.to_owned()));
    }

    pub(crate) fn remove_header(name: &str) {
        change(Change::RemoveHeader(name.to_owned()));
    }

    pub(crate) fn set_query_parameter(name: &str, value: &str) {
        change(Change::SetQueryParameter(name.to_owned(), value.to_owned()));
    }

    pub(crate) fn remove_query_parameter(name: &str) {
        change(Change::RemoveQueryParameter(name.to_owned()));
    }

    pub(crate) fn set_path(path: &str) {
        change(Change::SetPath(path.to_owned()));
    }

    pub(crate) fn set_body(body: &[u8]) {
        change(Change::SetBody(body.to_vec()));
    }
}

pub(crate) mod response {
    use super::super::with;
    pub(crate) use super::request::{remove_header, set_body, set_header};

    pub(crate) struct Part {
        pub(crate) index: u64,
        pub(crate) is_last: bool,
    }

    pub(crate) fn part() -> Part {
        with(|call| Part { index: call.index, is_last: call.is_last })
    }

    pub(crate) fn keep(length: u32) {
        with(|call| call.kept = usize::try_from(length).unwrap_or(usize::MAX));
    }

    pub(crate) fn status() -> u16 {
        with(|call| call.case.status)
    }

    pub(crate) fn header(name: &str) -> Option<String> {
        with(|call| super::joined(&call.case.response_headers, name))
    }

    pub(crate) fn header_names() -> Vec<String> {
        with(|call| super::names(&call.case.response_headers))
    }

    pub(crate) fn body_length() -> u64 {
        with(|call| super::length(&call.case.response_body))
    }

    pub(crate) fn body(offset: u64, length: u32) -> Vec<u8> {
        with(|call| super::part(&call.case.response_body, offset, length))
    }
}

pub(crate) mod session {
    use super::super::with;

    pub(crate) enum ClaimValue {
        Text(String),
        Json(String),
    }

    pub(crate) fn claim(name: &str) -> Option<ClaimValue> {
        with(|call| match call.case.claims.get(name)? {
            serde_json::Value::String(text) => Some(ClaimValue::Text(text.clone())),
            other => Some(ClaimValue::Json(other.to_string())),
        })
    }

    pub(crate) fn user_id() -> String {
        with(|call| call.case.user_id.clone())
    }

    pub(crate) fn conversation_id() -> String {
        with(|call| call.case.conversation_id.clone())
    }

    pub(crate) fn sandbox_id() -> String {
        "sandbox-aaaaaaaaaaaa".to_owned()
    }
}

pub(crate) mod log {
    use super::super::with;

    pub(crate) enum Level {
        Debug,
        Info,
        Warn,
    }

    pub(crate) fn write(_: Level, message: &str) {
        with(|call| call.log.push(message.to_owned()));
    }
}

pub(crate) mod counter {
    use super::super::with;

    pub(crate) fn add(name: &str, amount: u32) {
        with(|call| {
            *call.counters.entry(name.to_owned()).or_default() += u64::from(amount);
        });
    }
}

pub(crate) mod rate_limit {
    use super::super::with;

    pub(crate) fn take(_: &str, _: &str, _: u32) -> Option<u64> {
        with(|call| call.case.tokens_in)
    }
}

pub(crate) mod json_schema {
    use super::super::with;
    use crate::Mistake;

    pub(crate) fn check_body(_: &str) -> Vec<Mistake> {
        with(|call| call.case.schema_mistakes.clone())
    }
}
