// SPDX-License-Identifier: Apache-2.0
//! The typed context of an operation: which JSON values it can hold, and turning them into it.
//!
//! The shape comes from the schema's own context type, so that a value that was converted
//! conforms. A value that does not fit is refused, never left out or bent: an integer beyond 64
//! bits, a number with more than four decimals, text for a number, a missing required field, or
//! a field that is spelt almost like a declared one.
//!
//! What the schema does not declare is not part of the context, and no policy that passed
//! validation can ask for it.

use cedar_policy_core::ast::{ExtensionFunction, Name, PartialValue, Value};
use cedar_policy_core::extensions::Extensions;
use cedar_policy_core::validator::types::Type;
use serde_json::{Map, Number};
use std::fmt::Write as _;
use std::sync::LazyLock;

/// Values of one set or fields of one record that are looked at.
const MEMBERS: usize = 10_000;

/// What a place of the context can hold.
#[derive(Debug, Clone)]
pub(crate) enum Shape {
    Boolean,
    Long,
    Text,
    /// A decimal, an address or a time.
    Extension(Constructor),
    Set(Box<Self>),
    Record(Vec<Field>),
    /// Nothing that comes from a request: an entity, which only we put there.
    Given,
}

/// A field of a record.
#[derive(Debug, Clone)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) is_required: bool,
    /// `null` may stand for its absence.
    pub(crate) is_nullable: bool,
    /// Records of decisions hold a digest in its place.
    pub(crate) is_sensitive: bool,
    pub(crate) shape: Shape,
}

/// The function that makes an extension type's values from text.
#[derive(Clone, Copy)]
pub(crate) struct Constructor {
    function: &'static ExtensionFunction,
    is_decimal: bool,
}

impl std::fmt::Debug for Constructor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}", self.function.name())
    }
}

impl Constructor {
    pub(crate) fn of(type_name: &str) -> Option<Self> {
        let function = if type_name == "ipaddr" { "ip" } else { type_name };
        let name: Name = function.parse().ok()?;
        let function = Extensions::all_available().func(&name).ok()?;
        Some(Self { function, is_decimal: type_name == "decimal" })
    }

    /// The value that `text` names.
    pub(crate) fn value(self, text: &str) -> Option<Value> {
        match self.function.call(&[text.into()]) {
            Ok(PartialValue::Value(value)) => Some(value.with_maybe_source_loc(None)),
            Ok(PartialValue::Residual(_)) | Err(_) => None,
        }
    }
}

/// A request that its operation's context cannot hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{pointer}` does not fit the typed context: {expected}")]
pub struct Unfit {
    /// JSON pointer to the place, as in `/body/amount`.
    pub pointer: String,
    /// What would fit. Never holds the value.
    pub expected: &'static str,
}

impl Unfit {
    pub(crate) fn here(expected: &'static str) -> Self {
        Self { pointer: String::new(), expected }
    }

    /// The same, seen from one level up.
    pub(crate) fn within(mut self, name: &str) -> Self {
        let escaped = name.replace('~', "~0").replace('/', "~1");
        self.pointer.insert_str(0, &escaped);
        self.pointer.insert(0, '/');
        self
    }
}

impl Shape {
    /// The shape of a Cedar type.
    pub(crate) fn of(cedar: &Type) -> Self {
        match cedar {
            Type::Bool(_) => Self::Boolean,
            Type::Long => Self::Long,
            Type::String => Self::Text,
            Type::Set { element_type: Some(element) } => Self::Set(Box::new(Self::of(element))),
            Type::Record { attrs, .. } => Self::Record(
                attrs
                    .iter()
                    .map(|(name, attribute)| Field {
                        name: name.to_string(),
                        is_required: attribute.is_required,
                        is_nullable: false,
                        is_sensitive: false,
                        shape: Self::of(&attribute.attr_type),
                    })
                    .collect(),
            ),
            Type::ExtensionType { name } => {
                Constructor::of(&name.to_string()).map_or(Self::Given, Self::Extension)
            }
            Type::Never | Type::Entity(_) | Type::Set { element_type: None } => Self::Given,
        }
    }

    /// The fields of a record; none of anything else.
    pub(crate) fn fields(&self) -> &[Field] {
        match self {
            Self::Record(fields) => fields,
            _ => &[],
        }
    }

    /// `object` as a record of this shape.
    ///
    /// # Errors
    /// As [`Shape::value`].
    pub(crate) fn object(&self, object: &Map<String, serde_json::Value>) -> Result<Value, Unfit> {
        match self {
            Self::Record(fields) => record(fields, object),
            _ => Err(Unfit::here("nothing: this place is ours to fill")),
        }
    }

    /// Lets `null` stand for absence at `path`, in which `*` means the members of a set.
    pub(crate) fn allow_null(&mut self, path: &[String]) {
        self.at(path, &|field| field.is_nullable = !field.is_required);
    }

    /// Marks what stands at `path` as sensitive.
    pub(crate) fn hide(&mut self, path: &[String]) {
        self.at(path, &|field| field.is_sensitive = true);
    }

    /// Lets the field at `path` be absent: its value is not known any more.
    pub(crate) fn relax(&mut self, path: &[String]) {
        self.at(path, &|field| field.is_required = false);
    }

    /// Calls `change` with the field at `path`, in which `*` means the members of a set.
    fn at(&mut self, path: &[String], change: &dyn Fn(&mut Field)) {
        match (self, path) {
            (Self::Set(element), [star, rest @ ..]) if star == "*" => element.at(rest, change),
            (Self::Record(fields), [name, rest @ ..]) => {
                for field in fields.iter_mut().filter(|field| field.name == *name) {
                    if rest.is_empty() { change(field) } else { field.shape.at(rest, change) }
                }
            }
            _ => {}
        }
    }

    /// `json` as a value of this shape.
    ///
    /// # Errors
    /// [`Unfit`] names the place, seen from here.
    pub(crate) fn value(&self, json: &serde_json::Value) -> Result<Value, Unfit> {
        use serde_json::Value as Json;
        match (self, json) {
            (Self::Boolean, Json::Bool(value)) => Ok((*value).into()),
            (Self::Boolean, _) => Err(Unfit::here("`true` or `false`")),
            (Self::Long, Json::Number(number)) => long(number).map(Into::into).ok_or(Unfit::here(A_LONG)),
            (Self::Long, _) => Err(Unfit::here(A_LONG)),
            (Self::Text, Json::String(text)) => Ok(text.as_str().into()),
            (Self::Text, _) => Err(Unfit::here("text")),
            (Self::Extension(made), Json::Number(number)) if made.is_decimal => {
                decimal(number).and_then(|text| made.value(&text)).ok_or(Unfit::here(A_DECIMAL))
            }
            (Self::Extension(made), Json::String(text)) if !made.is_decimal => {
                made.value(text).ok_or(Unfit::here("text in the form of its type"))
            }
            (Self::Extension(_), _) => Err(Unfit::here(A_DECIMAL)),
            (Self::Set(element), Json::Array(items)) => element.set(items),
            (Self::Set(_), _) => Err(Unfit::here("a list")),
            (Self::Record(fields), Json::Object(object)) => record(fields, object),
            (Self::Record(_), _) => Err(Unfit::here("an object")),
            (Self::Given, _) => Err(Unfit::here("nothing: this place is ours to fill")),
        }
    }

    fn set(&self, items: &[serde_json::Value]) -> Result<Value, Unfit> {
        if items.len() > MEMBERS {
            return Err(Unfit::here("a shorter list"));
        }
        let values = items
            .iter()
            .enumerate()
            .map(|(index, item)| self.value(item).map_err(|unfit| unfit.within(&index.to_string())));
        Ok(Value::set(values.collect::<Result<Vec<_>, _>>()?, None))
    }
}

const A_LONG: &str = "an integer of at most 64 bits, signed";
const A_DECIMAL: &str =
    "a number with at most 4 decimals, between -922337203685477.5808 and 922337203685477.5807";

/// Most operations declare no parameter in some places.
static NOTHING: LazyLock<Value> = LazyLock::new(|| Value::empty_record(None));

fn record(fields: &[Field], object: &Map<String, serde_json::Value>) -> Result<Value, Unfit> {
    if fields.is_empty() && object.is_empty() {
        return Ok(NOTHING.clone());
    }
    let mut held = 0;
    let mut values = Vec::with_capacity(fields.len());
    for field in fields {
        match object.get(&field.name) {
            Some(serde_json::Value::Null) if field.is_nullable => held += 1,
            Some(json) => {
                let value = field.shape.value(json).map_err(|unfit| unfit.within(&field.name))?;
                values.push((field.name.as_str(), value));
                held += 1;
            }
            None if field.is_required => {
                return Err(Unfit::here("this field is required").within(&field.name));
            }
            None => {}
        }
    }
    if held < object.len() {
        refuse_lookalikes(fields, object)?;
    }
    Ok(Value::record(values, None))
}

/// A field that is not declared may be there, but not one that the backend could take for a
/// declared one: `Amount` beside `amount`.
fn refuse_lookalikes(fields: &[Field], object: &Map<String, serde_json::Value>) -> Result<(), Unfit> {
    if object.len() > MEMBERS {
        return Err(Unfit::here("an object with fewer fields"));
    }
    for name in object.keys() {
        let is_declared = fields.iter().any(|field| field.name == *name);
        if !is_declared && fields.iter().any(|field| is_alike(&field.name, name)) {
            return Err(Unfit::here("not a second spelling of a declared field").within(name));
        }
    }
    Ok(())
}

/// Equal but for case, `-` and `_`.
fn is_alike(one: &str, other: &str) -> bool {
    let letters = |text: &'_ str| {
        text.chars()
            .filter(|letter| !matches!(letter, '-' | '_'))
            .flat_map(char::to_lowercase)
            .collect::<String>()
    };
    letters(one) == letters(other)
}

/// The integer that a number is: `5`, and `5.0` where the double is exact.
fn long(number: &Number) -> Option<i64> {
    /// Doubles hold every integer up to here (2^53).
    const EXACT: f64 = 9_007_199_254_740_992.0;
    number.as_i64().or_else(|| {
        let value = number.as_f64().filter(|_| !number.is_u64())?;
        #[expect(clippy::cast_possible_truncation, reason = "a whole number within 2^53")]
        (value.fract() == 0.0 && value.abs() <= EXACT).then_some(value as i64)
    })
}

/// A number as Cedar's decimals are written: at least one digit after the point, at most four.
fn decimal(number: &Number) -> Option<String> {
    let mut text = String::new();
    if let Some(whole) = number.as_i64() {
        write!(text, "{whole}.0").ok()?;
    } else if number.is_u64() {
        return None;
    } else {
        // INVARIANT: `{}` of a double is its shortest exact decimal, without an exponent.
        write!(text, "{}", number.as_f64()?).ok()?;
        if !text.contains('.') {
            text.push_str(".0");
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests;
