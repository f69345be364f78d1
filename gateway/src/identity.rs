// SPDX-License-Identifier: Apache-2.0
//! Writes the session's identity wherever a client can spell one.
//!
//! Which names carry identity is declared per backend and compared after folding
//! ([`crate::headers::folded`]). Where the operation declares such a name, as a query or header
//! parameter, a form field or a JSON property, the session's own value is written, whether the
//! client sent one or not. A path parameter that names somebody else is refused, or rewritten
//! where the backend says so. The same name anywhere else is refused: the backend might read it.
//!
//! Names with a `-` (such as `X-User-Id`) are headers that every request to the backend carries;
//! a client's own spelling of exactly that header is replaced, any other spelling refused. In
//! queries, forms and JSON a name counts by its parts too: `order[user_id]` and `order.user_id`
//! are read as a field of a field by many servers.
//!
//! Bodies that are streamed are not looked into: the document names their type and it is neither
//! JSON nor a form, or it is one that holds no fields (`body::doubt`).

use crate::body::multipart::{Multipart, Part, PartContent};
use crate::body::{Admitted, AdmittedBody, names_in_doubt};
use crate::headers::{folded, is_tenants};
use crate::reject::Reject;
use crate::route::Call;
use http::{HeaderName, HeaderValue};
use postern_common::folder::{IdentityFields, PathIdentity};
use postern_common::id::percent_encoded;
use postern_common::session::Session;
use postern_openapi::{Content, ObjectType, ParameterLocation, Query, Schema, SchemaType};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::Arc;

/// What a name means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carries {
    User,
    Conversation,
    Sandbox,
    Tenant,
}

impl Carries {
    fn of(self, session: &Session) -> &str {
        match self {
            Self::User => session.user_id.as_str(),
            Self::Conversation => session.conversation_id.as_str(),
            Self::Sandbox => session.sandbox_id.as_str(),
            Self::Tenant => session.tenant.as_str(),
        }
    }
}

/// A backend's names that carry identity.
#[derive(Debug, Default)]
pub(crate) struct IdentityNames {
    by_folded: HashMap<String, Carries>,
    headers: Vec<(HeaderName, Carries)>,
    rewrites_paths: bool,
}

/// A name that cannot be used as it was declared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadName {
    #[error("identity name `{0}` has no letters or digits, or means two things: give each name one meaning")]
    Meaning(String),
    #[error("identity name `{0}` is a header that the gateway writes itself: choose another")]
    Ours(String),
}

impl IdentityNames {
    /// Reads a backend's declaration.
    ///
    /// # Errors
    /// [`BadName`] for a name that is empty when folded, declared with two meanings, or ours.
    pub(crate) fn new(fields: &IdentityFields) -> Result<Self, BadName> {
        let mut names = Self { rewrites_paths: fields.path == PathIdentity::Rewrite, ..Self::default() };
        let lists = [
            (&fields.user, Carries::User),
            (&fields.conversation, Carries::Conversation),
            (&fields.sandbox, Carries::Sandbox),
            (&fields.tenant, Carries::Tenant),
        ];
        for (list, carries) in lists {
            for name in list {
                names.add(name, carries)?;
            }
        }
        Ok(names)
    }

    fn add(&mut self, name: &str, carries: Carries) -> Result<(), BadName> {
        let key = folded(name);
        let before = self.by_folded.insert(key.clone(), carries);
        if key.is_empty() || before.is_some_and(|before| before != carries) {
            return Err(BadName::Meaning(name.to_owned()));
        }
        if !is_tenants(name) {
            return Err(BadName::Ours(name.to_owned()));
        }
        if name.contains('-')
            && let Ok(header) = HeaderName::try_from(name)
        {
            self.headers.push((header, carries));
        }
        Ok(())
    }

    fn carries(&self, name: &str) -> Option<Carries> {
        if self.by_folded.is_empty() { None } else { self.by_folded.get(&folded(name)).copied() }
    }

    /// What the name of a pair or property means, by itself or by a part of it.
    fn field_carries(&self, name: &str) -> Option<Carries> {
        self.carries(name).or_else(|| {
            let mut parts = name.split(['[', ']', '.']).filter(|part| !part.is_empty() && *part != name);
            parts.find_map(|part| self.carries(part))
        })
    }

    /// Whether a folded name carries identity.
    pub(crate) fn has_folded(&self, folded: &str) -> bool {
        self.by_folded.contains_key(folded)
    }
}

/// A request whose every claim of identity is the session's.
#[derive(Debug)]
pub(crate) struct Overridden {
    pub(crate) request: Admitted,
    /// Places that were written, as pointers.
    pub(crate) places: Vec<String>,
}

/// Writes the session's identity into a request.
///
/// # Errors
/// [`Reject::Identity`] for an identity name where none is declared, or another's in the path.
pub(crate) fn overwrite(session: &Session, mut request: Admitted) -> Result<Overridden, Reject> {
    let backend = Arc::clone(&request.call.backend);
    let mut writer = Writer { names: &backend.identity, session, places: Vec::new() };
    writer.headers(&mut request.call)?;
    writer.query(&mut request.call)?;
    writer.path(&mut request.call)?;
    writer.body(request.content.as_deref(), &mut request.body)?;
    Ok(Overridden { places: writer.places, request })
}

const UNDECLARED: &str = "carries identity where the operation declares none";

struct Writer<'r> {
    names: &'r IdentityNames,
    session: &'r Session,
    places: Vec<String>,
}

impl Writer<'_> {
    fn refuse(place: &str, name: &str, message: &'static str) -> Reject {
        let name: String = name.chars().take(64).flat_map(char::escape_default).collect();
        Reject::Identity { pointer: format!("{place}/{name}"), message }
    }

    fn headers(&mut self, call: &mut Call) -> Result<(), Reject> {
        let mut written: Vec<(HeaderName, Carries)> = self.names.headers.clone();
        for parameter in call.operation.operation.parameters_in(ParameterLocation::Header) {
            if let Some(carries) = self.names.carries(&parameter.name)
                && let Ok(name) = HeaderName::try_from(parameter.name.as_str())
            {
                written.push((name, carries));
            }
        }
        for name in call.headers.keys() {
            let is_ours = written.iter().any(|(own, _)| own == name);
            if self.names.carries(name.as_str()).is_some() && !is_ours {
                return Err(Self::refuse("/header", name.as_str(), UNDECLARED));
            }
        }
        for (name, carries) in written {
            let value = percent_encoded(carries.of(self.session));
            let value = HeaderValue::from_str(&value)
                .map_err(|_impossible| Reject::Internal("identity is no header value"))?;
            self.places.push(format!("/header/{name}"));
            Arc::make_mut(&mut call.headers).insert(name, value);
        }
        Ok(())
    }

    fn query(&mut self, call: &mut Call) -> Result<(), Reject> {
        let operation = &call.operation.operation;
        let declared: Vec<(&str, Carries)> = operation
            .parameters_in(ParameterLocation::Query)
            .filter_map(|parameter| {
                Some((parameter.name.as_str(), self.names.field_carries(&parameter.name)?))
            })
            .collect();
        let pairs = self.pairs(call.query.pairs(), &declared, "/query")?;
        if let Some(pairs) = pairs {
            call.query = Query::from_pairs(pairs);
        }
        Ok(())
    }

    /// Pairs with the declared names written, or `None` if nothing is to change.
    fn pairs(
        &mut self,
        sent: &[(String, String)],
        declared: &[(&str, Carries)],
        place: &str,
    ) -> Result<Option<Vec<(String, String)>>, Reject> {
        let is_declared = |name: &str| declared.iter().any(|(own, _)| *own == name);
        for (name, _) in sent {
            if !is_declared(name) && self.names.field_carries(name).is_some() {
                return Err(Self::refuse(place, name, UNDECLARED));
            }
        }
        if declared.is_empty() {
            return Ok(None);
        }
        let mut pairs: Vec<_> = sent.iter().filter(|(name, _)| !is_declared(name)).cloned().collect();
        for (name, carries) in declared {
            self.places.push(format!("{place}/{name}"));
            pairs.push(((*name).to_owned(), carries.of(self.session).to_owned()));
        }
        Ok(Some(pairs))
    }

    fn path(&mut self, call: &mut Call) -> Result<(), Reject> {
        let named: Vec<(String, Carries)> = call
            .parameters
            .iter()
            .filter_map(|(name, value)| {
                let carries = self.names.carries(name)?;
                (value != carries.of(self.session)).then(|| (name.to_owned(), carries))
            })
            .collect();
        for (name, carries) in named {
            if !self.names.rewrites_paths {
                return Err(Self::refuse("/path", &name, "names another than the session's own"));
            }
            call.parameters.replace(&name, carries.of(self.session));
            self.places.push(format!("/path/{name}"));
        }
        Ok(())
    }

    fn body(&mut self, content: Option<&Content>, body: &mut AdmittedBody) -> Result<(), Reject> {
        let schema = content.and_then(|content| content.schema.as_ref()).map(Schema::schema_type);
        match body {
            AdmittedBody::None | AdmittedBody::Whole(_) | AdmittedBody::Stream(_) => Ok(()),
            AdmittedBody::Multipart(body) => self.multipart(body, schema),
            AdmittedBody::Doubtful(text) => {
                let found = names_in_doubt(text).find(|name| self.names.field_carries(name).is_some());
                found.map_or(Ok(()), |name| Err(Self::refuse("/body", &name, UNDECLARED)))
            }
            AdmittedBody::Json(body) => self.json(body.value_mut(), schema, "/body"),
            AdmittedBody::Form(form) => {
                let declared = match schema {
                    Some(SchemaType::Object(object)) => self.declared(object),
                    _ => Vec::new(),
                };
                let declared: Vec<_> = declared.iter().map(|(name, carries, _)| (*name, *carries)).collect();
                if let Some(pairs) = self.pairs(form.pairs(), &declared, "/body")? {
                    *form = Query::from_pairs(pairs);
                }
                Ok(())
            }
        }
    }

    fn multipart(&mut self, body: &mut Multipart, schema: Option<&SchemaType>) -> Result<(), Reject> {
        let object = match schema {
            Some(SchemaType::Object(object)) => Some(object),
            _ => None,
        };
        let declared = object.map(|object| self.declared(object)).unwrap_or_default();
        let is_declared = |name: &str| declared.iter().any(|(own, _, _)| *own == name);
        body.parts.retain(|part| !is_declared(&part.name));
        for part in &mut body.parts {
            if self.names.field_carries(&part.name).is_some() {
                return Err(Self::refuse("/body", &part.name, UNDECLARED));
            }
            if let PartContent::Json(value) = &mut part.content {
                let property = object.and_then(|object| object.properties.get(&part.name));
                let at = format!("/body/{}", part.name);
                self.json(value, property.map(|property| &property.schema_type), &at)?;
            }
        }
        for (name, carries, _) in declared {
            self.places.push(format!("/body/{name}"));
            body.parts.push(Part::text(name, carries.of(self.session)));
        }
        Ok(())
    }

    fn declared<'t>(&self, object: &'t ObjectType) -> Vec<(&'t str, Carries, &'t SchemaType)> {
        let properties = object.properties.iter();
        let named = properties.filter_map(|(name, property)| {
            Some((name.as_str(), self.names.field_carries(name)?, &property.schema_type))
        });
        named.collect()
    }

    /// Recursion is bounded by the parser's depth.
    fn json(&mut self, value: &mut Value, schema: Option<&SchemaType>, at: &str) -> Result<(), Reject> {
        let schema = match schema {
            Some(SchemaType::Nullable(inner)) => Some(&**inner),
            other => other,
        };
        match value {
            Value::Object(map) => {
                let object = match schema {
                    Some(SchemaType::Object(object)) => Some(object),
                    _ => None,
                };
                self.json_object(map, object, at)
            }
            Value::Array(items) => {
                let item = match schema {
                    Some(SchemaType::Array(item)) => Some(&**item),
                    _ => None,
                };
                items
                    .iter_mut()
                    .enumerate()
                    .try_for_each(|(index, value)| self.json(value, item, &format!("{at}/{index}")))
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
        }
    }

    fn json_object(
        &mut self,
        map: &mut Map<String, Value>,
        schema: Option<&ObjectType>,
        at: &str,
    ) -> Result<(), Reject> {
        let declared = schema.map(|object| self.declared(object)).unwrap_or_default();
        for (name, value) in map.iter_mut() {
            if declared.iter().any(|(own, _, _)| own == name) {
                continue;
            }
            if self.names.field_carries(name).is_some() {
                return Err(Self::refuse(at, name, UNDECLARED));
            }
            let inner = schema.and_then(|object| match object.properties.get(name) {
                Some(property) => Some(&property.schema_type),
                None => object.additional.as_deref(),
            });
            self.json(value, inner, &format!("{at}/{name}"))?;
        }
        for (name, carries, schema) in declared {
            let value = spelled(carries.of(self.session), schema).ok_or_else(|| {
                Self::refuse(at, name, "must be a number here, and the session's own is none")
            })?;
            self.places.push(format!("{at}/{name}"));
            map.insert(name.to_owned(), value);
        }
        Ok(())
    }
}

/// The identity as the schema wants it: a number where it declares one. `None` if the text is none,
/// or is not how that number is written: `007` and `7` are two users.
fn spelled(text: &str, schema: &SchemaType) -> Option<Value> {
    match schema {
        SchemaType::Nullable(inner) => spelled(text, inner),
        SchemaType::Integer | SchemaType::Number => {
            let number = text.parse::<i64>().ok().filter(|number| number.to_string() == text);
            number.map(Value::from)
        }
        SchemaType::Any
        | SchemaType::Boolean
        | SchemaType::String { .. }
        | SchemaType::Array(_)
        | SchemaType::Object(_) => Some(Value::from(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_number_is_written_for_the_text_that_it_is_and_no_other() {
        let spelled = |text: &str| spelled(text, &SchemaType::Integer);
        assert_eq!(spelled("7"), Some(Value::from(7)));
        assert_eq!(spelled("-7"), Some(Value::from(-7)));
        for text in ["007", "+7", "-0", "7.0", " 7", "7e0", "\u{ff17}", "9223372036854775808", "alice", ""] {
            assert_eq!(spelled(text), None, "{text}");
        }
    }

    #[test]
    fn headers_that_frame_a_message_carry_no_identity() {
        let names = |name: &str| {
            let fields = IdentityFields { user: vec![name.to_owned()], ..IdentityFields::default() };
            IdentityNames::new(&fields).map(|_| ())
        };
        assert_eq!(names("X-User-Id"), Ok(()));
        for name in ["Transfer-Encoding", "Content-Length", "Host", "Connection", "X-Forwarded-For"] {
            assert_eq!(names(name), Err(BadName::Ours(name.to_owned())));
        }
    }

    proptest! {
        #[test]
        fn two_identities_never_become_one_number(one in "[-+0-9. ]{0,4}", other in "[-+0-9. ]{0,4}") {
            for schema in [SchemaType::Integer, SchemaType::Number] {
                let (first, second) = (spelled(&one, &schema), spelled(&other, &schema));
                prop_assert!(first.is_none() || one == other || first != second, "{one} {other}");
                let written = first.map(|value| value.to_string());
                prop_assert!(written.is_none_or(|written| written == one));
            }
        }
    }
}
