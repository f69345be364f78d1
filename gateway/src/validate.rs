// SPDX-License-Identifier: Apache-2.0
//! Holds a request against its operation's schema: parameters typed, body checked.
//!
//! Runs after identity was written, so that a schema may require what the gateway writes.

use crate::body::{Admitted, AdmittedBody};
use crate::identity::Overridden;
use crate::reject::Reject;
use crate::route::Call;
use postern_common::folder::Additional;
use postern_common::problem::FieldError;
use postern_openapi::{ParameterLocation, Query, TypedParameters, Violation};
use serde_json::Value;

/// A request that fits its operation.
#[derive(Debug)]
pub(crate) struct Valid {
    pub(crate) request: Admitted,
    pub(crate) typed: TypedParameters,
    /// The fields of a form, typed.
    pub(crate) form: Option<Value>,
    pub(crate) places: Vec<String>,
}

impl Valid {
    /// The body as a value, if it is JSON or a form.
    pub(crate) fn body_value(&self) -> Option<&Value> {
        match &self.request.body {
            AdmittedBody::Json(value) => Some(value),
            AdmittedBody::None
            | AdmittedBody::Form(_)
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
    let typed = parameters(&mut request.call)?;
    let mut form = None;
    match (&request.body, &request.content) {
        (AdmittedBody::None, _) => check_absent(&request.call)?,
        (_, None) => return Err(Reject::Internal("a body has lost its declaration")),
        (AdmittedBody::Json(value), Some(content)) => content.validate(value).map_err(refuse)?,
        (AdmittedBody::Form(fields), Some(content)) => {
            form = Some(content.typed_form(fields).map_err(refuse)?);
        }
        // INVARIANT: their declarations have no schema (`body::plan`).
        (AdmittedBody::Doubtful(_) | AdmittedBody::Whole(_) | AdmittedBody::Stream(_), Some(_)) => {}
    }
    Ok(Valid { request, typed, form, places })
}

fn check_absent(call: &Call) -> Result<(), Reject> {
    match &call.operation.operation.body {
        Some(body) if body.is_required => {
            Err(Reject::Schema(vec![FieldError { pointer: "/body".into(), message: "is required".into() }]))
        }
        _ => Ok(()),
    }
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
