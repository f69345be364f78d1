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
//! a client's own spelling of exactly that header is replaced, any other spelling refused.
//! Bodies that are streamed have a declared type that is neither JSON nor a form, so they hold no
//! such names that a server would look for.

use crate::body::{Admitted, AdmittedBody, declared_content};
use crate::headers::{clean_request, folded};
use crate::reject::Reject;
use crate::route::Call;
use http::{HeaderName, HeaderValue};
use postern_common::folder::{IdentityFields, PathIdentity};
use postern_common::id::percent_encoded;
use postern_common::session::Session;
use postern_openapi::{ObjectType, ParameterLocation, Query, Schema, SchemaType};
use serde_json::{Map, Value};
use std::collections::HashMap;

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
#[error("identity name `{0}` has no letters or digits, or means two things: give each name one meaning")]
pub(crate) struct BadName(String);

impl IdentityNames {
    /// Reads a backend's declaration.
    ///
    /// # Errors
    /// [`BadName`] for a name that is empty when folded, or declared with two meanings.
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
            return Err(BadName(name.to_owned()));
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

    /// Whether a folded name carries identity.
    pub(crate) fn has_folded(&self, folded: &str) -> bool {
        self.by_folded.contains_key(folded)
    }
}

/// A request whose every claim of identity is the session's.
#[derive(Debug)]
pub(crate) struct Overridden {
    pub(crate) call: Call,
    pub(crate) body: AdmittedBody,
    /// Places that were written, as pointers.
    pub(crate) places: Vec<String>,
}

/// Cleans the headers and writes the session's identity into a request.
///
/// # Errors
/// [`Reject::Identity`] for an identity name where none is declared, or another's in the path.
pub(crate) fn overwrite(session: &Session, admitted: Admitted) -> Result<Overridden, Reject> {
    let Admitted { mut call, mut body } = admitted;
    let backend = std::sync::Arc::clone(&call.backend);
    let mut writer = Writer { names: &backend.identity, session, places: Vec::new() };
    clean_request(&mut call.headers);
    writer.headers(&mut call)?;
    writer.query(&mut call)?;
    writer.path(&mut call)?;
    writer.body(&call, &mut body)?;
    Ok(Overridden { call, body, places: writer.places })
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
            call.headers.insert(name, value);
        }
        Ok(())
    }

    fn query(&mut self, call: &mut Call) -> Result<(), Reject> {
        let operation = &call.operation.operation;
        let declared: Vec<(&str, Carries)> = operation
            .parameters_in(ParameterLocation::Query)
            .filter_map(|parameter| Some((parameter.name.as_str(), self.names.carries(&parameter.name)?)))
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
            if !is_declared(name) && self.names.carries(name).is_some() {
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

    fn body(&mut self, call: &Call, body: &mut AdmittedBody) -> Result<(), Reject> {
        let schema =
            declared_content(call).and_then(|content| content.schema.as_ref()).map(Schema::schema_type);
        match body {
            AdmittedBody::None | AdmittedBody::Whole(_) | AdmittedBody::Stream(_) => Ok(()),
            AdmittedBody::Json(value) => self.json(value, schema, "/body"),
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

    fn declared<'t>(&self, object: &'t ObjectType) -> Vec<(&'t str, Carries, &'t SchemaType)> {
        let properties = object.properties.iter();
        let named = properties.filter_map(|(name, property)| {
            Some((name.as_str(), self.names.carries(name)?, &property.schema_type))
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
            if self.names.carries(name).is_some() {
                return Err(Self::refuse(at, name, UNDECLARED));
            }
            let inner = schema.and_then(|object| match object.properties.get(name) {
                Some(property) => Some(&property.schema_type),
                None => object.additional.as_deref(),
            });
            self.json(value, inner, &format!("{at}/{name}"))?;
        }
        for (name, carries, schema) in declared {
            self.places.push(format!("{at}/{name}"));
            map.insert(name.to_owned(), spelled(carries.of(self.session), schema));
        }
        Ok(())
    }
}

/// The identity as the schema wants it: a number where it declares one and the text is one.
fn spelled(text: &str, schema: &SchemaType) -> Value {
    match schema {
        SchemaType::Nullable(inner) => spelled(text, inner),
        SchemaType::Integer | SchemaType::Number => {
            text.parse::<i64>().map_or_else(|_not_a_number| Value::from(text), Value::from)
        }
        SchemaType::Any
        | SchemaType::Boolean
        | SchemaType::String { .. }
        | SchemaType::Array(_)
        | SchemaType::Object(_) => Value::from(text),
    }
}
