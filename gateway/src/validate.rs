// SPDX-License-Identifier: Apache-2.0
//! Holds a request against its operation's schema: parameters typed, body checked.
//!
//! Runs after identity was written, so that a schema may require what the gateway writes.

use crate::body::multipart::Multipart;
use crate::body::{Admitted, AdmittedBody};
use crate::headers::{folded, is_ordinary};
use crate::identity::Overridden;
use crate::reject::Reject;
use crate::route::Call;
use http::HeaderName;
use postern_common::folder::Additional;
use postern_common::problem::FieldError;
use postern_openapi::{Content, ParameterLocation, Query, TypedParameters, Violation, limits};
use serde_json::Value;
use std::sync::Arc;

/// A request that fits its operation.
#[derive(Debug)]
pub(crate) struct Valid {
    pub(crate) request: Admitted,
    pub(crate) typed: TypedParameters,
    /// The fields of a form, or of a multipart body without its files, typed.
    pub(crate) form: Option<Value>,
    pub(crate) places: Vec<String>,
}

impl Valid {
    /// The body as a value, if it has fields.
    pub(crate) fn body_value(&self) -> Option<&Value> {
        match &self.request.body {
            AdmittedBody::Json(body) => Some(body.value()),
            AdmittedBody::None
            | AdmittedBody::Form(_)
            | AdmittedBody::Multipart(_)
            | AdmittedBody::Doubtful(_)
            | AdmittedBody::Whole(_)
            | AdmittedBody::Stream(_) => self.form.as_ref(),
        }
    }
}

/// Checks a request.
///
/// # Errors
/// [`Reject::Schema`] names every place that does not fit.
pub(crate) fn check(overridden: Overridden) -> Result<Valid, Reject> {
    let Overridden { mut request, places } = overridden;
    undeclared_headers(&mut request.call)?;
    let typed = parameters(&mut request.call)?;
    let mut form = None;
    match (&request.body, &request.content) {
        (AdmittedBody::None, _) => check_absent(&request.call)?,
        (_, None) => return Err(Reject::Internal("a body has lost its declaration")),
        (AdmittedBody::Json(body), Some(content)) => content.validate(body.value()).map_err(refuse)?,
        (AdmittedBody::Form(fields), Some(content)) => {
            form = Some(content.typed_form(fields).map_err(refuse)?);
        }
        (AdmittedBody::Multipart(body), Some(content)) => form = Some(parts(body, content)?),
        // INVARIANT: their declarations have no schema (`body::plan`).
        (AdmittedBody::Doubtful(_) | AdmittedBody::Whole(_) | AdmittedBody::Stream(_), Some(_)) => {}
    }
    Ok(Valid { request, typed, form, places })
}

/// The parts of a multipart body, by type and by schema.
fn parts(body: &Multipart, content: &Content) -> Result<Value, Reject> {
    if body.parts.iter().any(|part| !content.takes_part(&part.name, part.essence())) {
        return Err(Reject::ContentType("a part of the body has a type that its `encoding` does not name"));
    }
    let fields: Vec<_> = body.parts.iter().map(|part| (part.name.as_str(), part.field())).collect();
    content.typed_fields(&fields).map_err(refuse)
}

fn check_absent(call: &Call) -> Result<(), Reject> {
    match &call.operation.operation.body {
        Some(body) if body.is_required => {
            Err(Reject::Schema(vec![FieldError { pointer: "/body".into(), message: "is required".into() }]))
        }
        _ => Ok(()),
    }
}

/// Treats headers that the operation does not declare as the backend says. Those that carry identity
/// are judged already, and what is there of them is ours.
fn undeclared_headers(call: &mut Call) -> Result<(), Reject> {
    let (operation, backend) = (&call.operation.operation, &call.backend);
    if backend.additional_headers == Additional::Pass || !operation.is_described {
        return Ok(());
    }
    let is_known = |name: &HeaderName| {
        let folded = folded(name.as_str());
        is_ordinary(&folded)
            || backend.identity.has_folded(&folded)
            || operation.parameters_in(ParameterLocation::Header).any(|known| known.name == name.as_str())
    };
    let unknown: Vec<HeaderName> = call.headers.keys().filter(|name| !is_known(name)).cloned().collect();
    if unknown.is_empty() {
        return Ok(());
    }
    if backend.additional_headers == Additional::Refuse {
        let message = "is not declared by the operation";
        let error =
            |name: &HeaderName| FieldError { pointer: format!("/header/{name}"), message: message.into() };
        return Err(Reject::Schema(unknown.iter().take(limits::VIOLATIONS).map(error).collect()));
    }
    for name in unknown {
        Arc::make_mut(&mut call.headers).remove(name);
    }
    Ok(())
}

fn parameters(call: &mut Call) -> Result<TypedParameters, Reject> {
    let operation = &call.operation.operation;
    let headers: Vec<(&str, &str)> =
        call.headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?))).collect();
    if call.backend.additional_query == Additional::Refuse || !operation.is_described {
        return operation.typed_parameters(&call.parameters, &call.query, &headers).map_err(refuse);
    }
    let is_declared = |name: &str| {
        operation.parameters_in(ParameterLocation::Query).any(|parameter| parameter.name == name)
    };
    let declared = call.query.pairs().iter().filter(|(name, _)| is_declared(name)).cloned().collect();
    let declared = Query::from_pairs(declared);
    let typed = operation.typed_parameters(&call.parameters, &declared, &headers).map_err(refuse)?;
    if call.backend.additional_query == Additional::Drop {
        call.query = declared;
    }
    Ok(typed)
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` hands over")]
fn refuse(violations: Vec<Violation>) -> Reject {
    let error = |violation: &Violation| FieldError {
        pointer: violation.pointer.clone(),
        message: violation.message.clone(),
    };
    Reject::Schema(violations.iter().map(error).collect())
}
