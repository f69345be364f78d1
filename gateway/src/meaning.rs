// SPDX-License-Identifier: Apache-2.0
//! Refuses what could make a request mean something else to the backend than it means to us.
//!
//! Frameworks let a field change the method (Rails, Laravel and Symfony read `_method` of a form or
//! query), and fold names of headers (`X_Amount` and `X-Amount` are one to WSGI and CGI). Where the
//! operation declares such a field by exactly this name, it is an ordinary one and judged as such.

use crate::body::{Admitted, AdmittedBody, names_in_doubt};
use crate::headers::folded;
use crate::reject::Reject;
use crate::route::Call;
use http::HeaderName;
use postern_openapi::{Content, ParameterLocation, Schema, SchemaType};
use std::sync::Arc;

/// Checks a request, and drops other spellings of the backend's credential header.
///
/// # Errors
/// [`Reject::Malformed`] names the field or header.
pub(crate) fn check(request: &mut Admitted) -> Result<(), Reject> {
    headers(&mut request.call)?;
    let operation = &request.call.operation.operation;
    for (name, _) in request.call.query.pairs() {
        let is_declared =
            || operation.parameters_in(ParameterLocation::Query).any(|parameter| parameter.name == *name);
        if changes_method(name) && !is_declared() {
            return Err(refusal("/query", name));
        }
    }
    let content = request.content.as_deref();
    let found = match &request.body {
        AdmittedBody::Json(body) => body.value().as_object().and_then(|map| undeclared(map.keys(), content)),
        AdmittedBody::Form(form) => undeclared(form.pairs().iter().map(|(name, _)| name), content),
        AdmittedBody::Multipart(body) => undeclared(body.parts.iter().map(|part| &part.name), content),
        AdmittedBody::Doubtful(text) => names_in_doubt(text).find(|name| changes_method(name)),
        AdmittedBody::None | AdmittedBody::Whole(_) | AdmittedBody::Stream(_) => None,
    };
    found.map_or(Ok(()), |name| Err(refusal("/body", &name)))
}

fn refusal(place: &str, name: &str) -> Reject {
    let name: String = name.chars().take(64).flat_map(char::escape_default).collect();
    Reject::Malformed(format!("`{place}/{name}` would change the request's method behind the gateway"))
}

/// The first name that changes the method and that the body's schema does not declare.
fn undeclared<'n>(mut names: impl Iterator<Item = &'n String>, content: Option<&Content>) -> Option<String> {
    let declared = match content.and_then(|content| content.schema.as_ref()).map(Schema::schema_type) {
        Some(SchemaType::Object(object)) => Some(&object.properties),
        _ => None,
    };
    let is_declared = |name: &str| declared.is_some_and(|properties| properties.contains_key(name));
    names.find(|name| changes_method(name) && !is_declared(name)).cloned()
}

/// `_method` as frameworks spell it (PHP reads `.method` and ` method` as the same), and the names
/// of the headers of that purpose, which some read from the query too.
fn changes_method(name: &str) -> bool {
    match folded(name).as_str() {
        "method" => !name.starts_with(char::is_alphanumeric),
        "xhttpmethod" | "xhttpmethodoverride" | "xmethodoverride" => true,
        _ => false,
    }
}

/// Of a declared header only the declared spelling may come, of the credential's none but ours.
fn headers(call: &mut Call) -> Result<(), Reject> {
    let credential = call
        .backend
        .credential
        .as_ref()
        .map(|credential| (credential.name(), folded(credential.name().as_str())));
    let declared: Vec<(&str, String)> = call
        .operation
        .operation
        .parameters_in(ParameterLocation::Header)
        .map(|parameter| (parameter.name.as_str(), folded(&parameter.name)))
        .collect();
    if credential.is_none() && declared.is_empty() {
        return Ok(());
    }
    let mut gone: Vec<HeaderName> = Vec::new();
    for name in call.headers.keys() {
        let key = folded(name.as_str());
        let is_declared = declared.iter().any(|(own, _)| *own == name.as_str());
        if let Some((own, _)) = declared.iter().find(|(_, folded)| *folded == key && !is_declared) {
            return Err(Reject::Malformed(format!("the header `{name}` is another spelling of `{own}`")));
        }
        if credential.as_ref().is_some_and(|(own, folded)| *folded == key && *own != name) {
            gone.push(name.clone());
        }
    }
    for name in gone {
        Arc::make_mut(&mut call.headers).remove(name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_a_method_override_are_known_and_ordinary_names_are_not() {
        for name in
            ["_method", "_METHOD", ".method", " method", "[method", "_method[]", "X-HTTP-Method-Override"]
        {
            assert!(changes_method(name), "{name}");
        }
        for name in ["method", "payment_method", "method_", "methods", "_methods"] {
            assert!(!changes_method(name), "{name}");
        }
    }
}
