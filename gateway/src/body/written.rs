// SPDX-License-Identifier: Apache-2.0
//! A JSON body, and the text that is written from it: once, whoever reads it first.
//!
//! What filters are shown is what will be forwarded, so both take the same text. Writing 64 KiB
//! costs as much as a filter's whole call.

use bytes::Bytes;
use postern_openapi::json;
use serde_json::Value;
use std::sync::OnceLock;

/// A JSON value with its text.
#[derive(Debug)]
pub(crate) struct JsonBody {
    value: Value,
    /// INVARIANT: the text of `value` as it is now, or nothing.
    text: OnceLock<Bytes>,
}

impl JsonBody {
    pub(crate) const fn new(value: Value) -> Self {
        Self { value, text: OnceLock::new() }
    }

    pub(crate) const fn value(&self) -> &Value {
        &self.value
    }

    /// The value to change; what was written of it is forgotten.
    pub(crate) fn value_mut(&mut self) -> &mut Value {
        self.text = OnceLock::new();
        &mut self.value
    }

    /// The text that is forwarded.
    pub(crate) fn text(&self) -> &Bytes {
        self.text.get_or_init(|| json::write(&self.value).into())
    }

    /// The text alone; the value goes.
    pub(crate) fn into_text(self) -> Bytes {
        let Self { value, text } = self;
        text.into_inner().unwrap_or_else(|| json::write(&value).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_text_is_written_once_and_again_after_a_change() {
        let mut body = JsonBody::new(json!({ "a": 1 }));
        let first = body.text().clone();
        assert_eq!(first, r#"{"a":1}"#);
        assert_eq!(first.as_ptr(), body.text().as_ptr(), "it is the same text");
        body.value_mut()["a"] = json!(2);
        assert_eq!(body.text(), r#"{"a":2}"#);
        let second = body.text().as_ptr();
        assert_eq!(body.into_text().as_ptr(), second);
    }

    #[test]
    fn a_body_that_nobody_read_is_written_when_it_goes() {
        let mut body = JsonBody::new(json!([1]));
        body.value_mut()[0] = json!("x");
        assert_eq!(body.value(), &json!(["x"]));
        assert_eq!(body.into_text(), r#"["x"]"#);
    }
}
