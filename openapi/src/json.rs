// SPDX-License-Identifier: Apache-2.0
//! JSON read strictly and written again: what two parsers could understand differently is refused.
//!
//! `serde_json` does the parsing; this module adds what RFC 8259 leaves open. Refused are: a byte
//! order mark, text that is not UTF-8, lone surrogates, a key that stands twice in one object
//! (compared after unescaping), nesting and sizes over the [`Limits`], anything after the value,
//! and numbers that would not come out as they went in:
//!
//! - a number without fraction and exponent must fit `i64` or `u64`;
//! - any other must be finite, and what [`write`] makes of its `f64` (a shortest decimal) must have
//!   the same value as the digits that were sent. So `0.1`, `1.50` and `1e2` pass; `0.1000000000000000055`
//!   (one digit too many to tell), `1e400` and `1e-400` do not.

use crate::mistake::push_token;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;

/// How much one JSON text may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Length of the text.
    pub bytes: usize,
    /// Objects and arrays inside each other; at most [`Limits::DEEPEST`] counts.
    pub depth: usize,
    /// Values of all kinds, the outermost included.
    pub values: usize,
}

impl Limits {
    /// The deepest nesting that is ever read; `serde_json` itself stops at 128.
    pub const DEEPEST: usize = 100;
}

impl Default for Limits {
    /// 1 MiB, 32 deep, 100,000 values: several times what API bodies have, milliseconds to read.
    fn default() -> Self {
        Self { bytes: 1024 * 1024, depth: 32, values: 100_000 }
    }
}

/// Why a text is refused as JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Malformed {
    /// JSON pointer to the value at fault; empty for the outermost.
    pub pointer: String,
    /// What was found and what is accepted. Never holds a value that was sent.
    pub reason: String,
}

/// Reads one JSON text.
///
/// # Errors
/// [`Malformed`] for the first thing that is refused (see the module).
pub fn parse(text: &[u8], limits: Limits) -> Result<Value, Malformed> {
    let whole = |reason: &str| Malformed { pointer: String::new(), reason: reason.to_owned() };
    if text.len() > limits.bytes {
        return Err(whole("the text is longer than this route accepts"));
    }
    if text.starts_with(b"\xef\xbb\xbf") {
        return Err(whole("the text begins with a byte order mark; send it without"));
    }
    let text = std::str::from_utf8(text)
        .map_err(|error| whole(&format!("byte {} is not UTF-8", error.valid_up_to())))?;
    let mut reading = Reading {
        numbers: NumberTokens { rest: text.as_bytes() },
        depth_left: limits.depth.min(Limits::DEEPEST),
        values_left: limits.values,
        refused_at: Vec::new(),
    };
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let parsed = AnyValue(&mut reading).deserialize(&mut deserializer);
    match parsed.and_then(|value| deserializer.end().map(|()| value)) {
        Ok(value) => Ok(value),
        Err(error) => Err(Malformed { pointer: reading.pointer(), reason: error.to_string() }),
    }
}

/// Writes a value in the one form that we send on: compact, numbers as their shortest decimal.
#[must_use]
pub fn write(value: &Value) -> Vec<u8> {
    // INVARIANT: `Value`'s own `Display` is its compact JSON and cannot fail.
    value.to_string().into_bytes()
}

/// What is shared by all values of one text while it is read.
struct Reading<'t> {
    numbers: NumberTokens<'t>,
    depth_left: usize,
    values_left: usize,
    /// Reference tokens from the refused value outwards, filled while an error travels up.
    refused_at: Vec<String>,
}

impl Reading<'_> {
    fn pointer(&self) -> String {
        let mut pointer = String::new();
        for token in self.refused_at.iter().rev() {
            push_token(&mut pointer, token);
        }
        pointer
    }

    fn enter<E: serde::de::Error>(&mut self) -> Result<(), E> {
        self.depth_left = self.depth_left.checked_sub(1).ok_or_else(|| E::custom("nested too deep"))?;
        Ok(())
    }

    fn leave(&mut self) {
        self.depth_left += 1;
    }
}

/// Reads any value, in step with the number tokens of the text.
struct AnyValue<'r, 't>(&'r mut Reading<'t>);

impl<'de> DeserializeSeed<'de> for AnyValue<'_, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        let left = self.0.values_left.checked_sub(1);
        self.0.values_left = left.ok_or_else(|| D::Error::custom("more values than this route accepts"))?;
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AnyValue<'_, '_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        self.0.numbers.next_token();
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        self.0.numbers.next_token();
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Value, E> {
        // Read again from the digits: the parser's own fast path may be off by one in the last place.
        let token = self.0.numbers.next_token();
        faithful_float(token).map(Value::Number).map_err(E::custom)
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let reading = self.0;
        reading.enter()?;
        let mut list = Vec::new();
        loop {
            match items.next_element_seed(AnyValue(reading)) {
                Ok(Some(item)) => list.push(item),
                Ok(None) => break,
                Err(error) => {
                    reading.refused_at.push(list.len().to_string());
                    return Err(error);
                }
            }
        }
        reading.leave();
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let reading = self.0;
        reading.enter()?;
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if object.contains_key(&key) {
                reading.refused_at.push(key);
                return Err(A::Error::custom("the same key stands twice in one object"));
            }
            match entries.next_value_seed(AnyValue(reading)) {
                Ok(value) => object.insert(key, value),
                Err(error) => {
                    reading.refused_at.push(key);
                    return Err(error);
                }
            };
        }
        reading.leave();
        Ok(Value::Object(object))
    }
}

/// The number tokens of a JSON text, in order. Text that is no JSON gives nonsense, never a panic;
/// the parser that runs in step has then stopped already.
struct NumberTokens<'t> {
    rest: &'t [u8],
}

impl<'t> NumberTokens<'t> {
    fn next_token(&mut self) -> &'t str {
        while let [first, after @ ..] = self.rest {
            match first {
                b'"' => self.rest = after_string(after),
                b'-' | b'0'..=b'9' => {
                    let is_part = |byte: &u8| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
                    let length = self.rest.iter().take_while(|byte| is_part(byte)).count();
                    let (token, rest) = self.rest.split_at(length);
                    self.rest = rest;
                    return std::str::from_utf8(token).unwrap_or_default();
                }
                _ => self.rest = after,
            }
        }
        ""
    }
}

/// What follows the string whose opening quote was just read.
fn after_string(mut rest: &[u8]) -> &[u8] {
    loop {
        rest = match rest {
            [b'\\', _, after @ ..] => after,
            [b'"', after @ ..] => return after,
            [_, after @ ..] => after,
            [] => return rest,
        };
    }
}

/// The number that `token` names, if its `f64` names the same decimal again.
pub(crate) fn faithful_float(token: &str) -> Result<Number, &'static str> {
    const INTEGER: &str = "this integer is beyond 64 bits; send it as text";
    const DIGITS: &str = "this number has more digits than a double holds; send fewer, or text";
    if !token.contains(['.', 'e', 'E']) && token != "-0" {
        return Err(INTEGER);
    }
    let value = token.parse::<f64>().map_err(|_not_a_number| "this is not a number")?;
    let number = Number::from_f64(value).ok_or("this number is beyond a double; send it as text")?;
    if decimal(token) == decimal(&number.to_string()) { Ok(number) } else { Err(DIGITS) }
}

/// Significant digits without zeros at either end, and the power of ten of the last one.
fn decimal(text: &str) -> Option<(String, i64)> {
    let unsigned = text.trim_start_matches('-');
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
        None => (unsigned, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let kept = digits.trim_end_matches('0');
    let dropped = digits.len() - kept.len();
    let significant = kept.trim_start_matches('0');
    if significant.is_empty() {
        return Some((String::new(), 0));
    }
    let shift = i64::try_from(dropped).ok()? - i64::try_from(fraction.len()).ok()?;
    Some((significant.to_owned(), exponent.checked_add(shift)?))
}

#[cfg(test)]
mod tests;
