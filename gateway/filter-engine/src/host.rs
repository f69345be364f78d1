// SPDX-License-Identifier: Apache-2.0
//! The host's functions, over the state of one call.
//!
//! Each counts against the call's bound first. What a filter may not do ends the call with
//! [`FilterFailure::Forbidden`]: a filter that cannot go on must not be able to overlook it.

use crate::bindings::postern::filter as wit;
use crate::buckets::TakeError;
use crate::call::Call;
use crate::failure::FilterFailure;
use crate::manifest::{HostFunction, Phase};
use crate::names::is_changeable;
use crate::outcome::{Change, LogLevel};
use crate::schema::{self, Schema, Work};
use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use std::collections::BTreeSet;
use std::time::Instant;
use tokio::runtime::{Handle, RuntimeFlavor};
use wasmtime::Result;
use wasmtime::component::{HasSelf, Linker};

/// The longest path that a filter may set; the listener takes no longer one either.
const MAX_PATH_BYTES: usize = 8 * 1024;

/// Work beyond which a check leaves the runtime's workers: some 2.5 ms.
const BIG_WORK: Work = 50_000;

/// Adds what every filter gets, and these functions.
pub(crate) fn add_to(linker: &mut Linker<Call>, functions: &BTreeSet<HostFunction>) -> Result<()> {
    type Own = HasSelf<Call>;
    wit::types::add_to_linker::<Call, Own>(linker, |call| call)?;
    wit::request::add_to_linker::<Call, Own>(linker, |call| call)?;
    wit::response::add_to_linker::<Call, Own>(linker, |call| call)?;
    wit::config::add_to_linker::<Call, Own>(linker, |call| call)?;
    for function in functions {
        match function {
            HostFunction::Session => wit::session::add_to_linker::<Call, Own>(linker, |call| call)?,
            HostFunction::Log => wit::log::add_to_linker::<Call, Own>(linker, |call| call)?,
            HostFunction::Counter => wit::counter::add_to_linker::<Call, Own>(linker, |call| call)?,
            HostFunction::RateLimit => {
                wit::rate_limit::add_to_linker::<Call, Own>(linker, |call| call)?;
            }
            HostFunction::JsonSchema => {
                wit::json_schema::add_to_linker::<Call, Own>(linker, |call| call)?;
            }
        }
    }
    Ok(())
}

fn length(body: &Bytes) -> u64 {
    u64::try_from(body.len()).unwrap_or(u64::MAX)
}

fn part(body: &Bytes, offset: u64, length: u32) -> Vec<u8> {
    let from = usize::try_from(offset).unwrap_or(usize::MAX).min(body.len());
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let to = from.saturating_add(length).min(body.len());
    body.get(from..to).unwrap_or_default().to_vec()
}

fn header(name: &str) -> Result<HeaderName, FilterFailure> {
    match HeaderName::from_bytes(name.as_bytes()) {
        Ok(name) if is_changeable(&name) => Ok(name),
        Ok(name) => Err(FilterFailure::forbidden(format!("change header `{name}`"))),
        Err(_malformed) => Err(FilterFailure::forbidden("set a header whose name is not one")),
    }
}

fn header_value(value: &str) -> Result<HeaderValue, FilterFailure> {
    HeaderValue::from_str(value)
        .map_err(|_malformed| FilterFailure::forbidden("set a header value with control characters"))
}

impl Call {
    fn request_body(&self) -> Result<&Bytes, FilterFailure> {
        match (self.phase, self.shared.manifest.request_body, &self.request.body) {
            (Phase::Request, Some(_), Some(body)) => Ok(body),
            _ => Err(FilterFailure::forbidden(
                "use the request's body: `body.request` is not in filter.toml, or the response is under way",
            )),
        }
    }

    fn response_body(&self) -> Result<&Bytes, FilterFailure> {
        let body = self.response.as_ref().and_then(|response| response.body.as_ref());
        match body {
            Some(body) if self.shared.manifest.reads_responses() => Ok(body),
            _ => Err(FilterFailure::forbidden(
                "use the response's body: filter.toml has neither `body.response` nor `body.response_chunk`",
            )),
        }
    }

    fn part(&self) -> Result<crate::view::Part, FilterFailure> {
        self.response()?.part.ok_or_else(|| {
            FilterFailure::forbidden("use parts of a body: `body.response_chunk` is not in filter.toml")
        })
    }

    /// The head of a response is on its way once the first part of its body was judged.
    fn change_head(&mut self, change: Change) -> Result<()> {
        let is_gone =
            self.response.as_ref().and_then(|response| response.part).is_some_and(|part| part.index > 0);
        if is_gone {
            return Err(FilterFailure::forbidden("change headers that have been answered").into());
        }
        self.change_in(Phase::Response, change)
    }

    fn response(&self) -> Result<&crate::view::ResponseView, FilterFailure> {
        self.response
            .as_deref()
            .ok_or_else(|| FilterFailure::forbidden("use the response before there is one"))
    }

    fn change_in(&mut self, phase: Phase, change: Change) -> Result<()> {
        if self.phase != phase {
            let late = FilterFailure::forbidden("change a request that has been forwarded");
            let early = FilterFailure::forbidden("change a response before there is one");
            return Err(if phase == Phase::Request { late } else { early }.into());
        }
        Ok(self.change(change)?)
    }

    fn set_body_in(&mut self, phase: Phase, most: Option<u64>, body: Vec<u8>) -> Result<()> {
        let body = Bytes::from(body);
        if most.is_none_or(|most| length(&body) > most) {
            return Err(FilterFailure::forbidden("set a body longer than filter.toml's `body` allows").into());
        }
        self.change_in(phase, Change::SetBody(body))
    }

    fn schema(&self, name: &str) -> Result<Schema, FilterFailure> {
        let found = self.shared.manifest.schemas.get(name).cloned();
        found.ok_or_else(|| FilterFailure::forbidden("check a schema that is not in filter.toml's `schemas`"))
    }
}

impl wit::types::Host for Call {}

impl wit::request::Host for Call {
    fn method(&mut self) -> Result<String> {
        self.count()?;
        Ok(self.request.method.as_str().to_owned())
    }

    fn backend(&mut self) -> Result<String> {
        self.count()?;
        Ok(self.request.backend.to_string())
    }

    fn operation(&mut self) -> Result<String> {
        self.count()?;
        Ok(self.request.operation.to_string())
    }

    fn path(&mut self) -> Result<String> {
        self.count()?;
        Ok(self.request.path.clone())
    }

    fn path_template(&mut self) -> Result<String> {
        self.count()?;
        Ok(self.request.path_template.to_string())
    }

    fn path_parameter(&mut self, name: String) -> Result<Option<String>> {
        self.count()?;
        Ok(self.request.path_parameter(&name).map(str::to_owned))
    }

    fn query_parameter(&mut self, name: String) -> Result<Option<String>> {
        self.count()?;
        Ok(self.request.query_parameter(&name).map(str::to_owned))
    }

    fn query(&mut self) -> Result<Vec<wit::types::Field>> {
        self.count()?;
        let fields = self.request.query.iter().cloned();
        Ok(fields.map(|(name, value)| wit::types::Field { name, value }).collect())
    }

    fn header(&mut self, name: String) -> Result<Option<String>> {
        self.count()?;
        Ok(self.request.header(&name))
    }

    fn header_names(&mut self) -> Result<Vec<String>> {
        self.count()?;
        Ok(self.request.header_names().map(|name| name.as_str().to_owned()).collect())
    }

    fn body_length(&mut self) -> Result<u64> {
        self.count()?;
        Ok(length(self.request_body()?))
    }

    fn body(&mut self, offset: u64, length: u32) -> Result<Vec<u8>> {
        self.count()?;
        Ok(part(self.request_body()?, offset, length))
    }

    fn set_header(&mut self, name: String, value: String) -> Result<()> {
        self.count()?;
        self.change_in(Phase::Request, Change::SetHeader(header(&name)?, header_value(&value)?))
    }

    fn remove_header(&mut self, name: String) -> Result<()> {
        self.count()?;
        self.change_in(Phase::Request, Change::RemoveHeader(header(&name)?))
    }

    fn set_query_parameter(&mut self, name: String, value: String) -> Result<()> {
        self.count()?;
        self.change_in(Phase::Request, Change::SetQueryParameter(name, value))
    }

    fn remove_query_parameter(&mut self, name: String) -> Result<()> {
        self.count()?;
        self.change_in(Phase::Request, Change::RemoveQueryParameter(name))
    }

    fn set_path(&mut self, path: String) -> Result<()> {
        self.count()?;
        let is_path = path.starts_with('/')
            && path.len() <= MAX_PATH_BYTES
            && path.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#'));
        if !is_path {
            return Err(FilterFailure::forbidden("set a path that is not an encoded absolute one").into());
        }
        self.change_in(Phase::Request, Change::SetPath(path))
    }

    fn set_body(&mut self, body: Vec<u8>) -> Result<()> {
        self.count()?;
        let most = self.shared.manifest.request_body;
        self.set_body_in(Phase::Request, most, body)
    }
}

impl wit::response::Host for Call {
    fn status(&mut self) -> Result<u16> {
        self.count()?;
        Ok(self.response()?.status.as_u16())
    }

    fn header(&mut self, name: String) -> Result<Option<String>> {
        self.count()?;
        Ok(self.response()?.header(&name))
    }

    fn header_names(&mut self) -> Result<Vec<String>> {
        self.count()?;
        Ok(self.response()?.header_names().map(|name| name.as_str().to_owned()).collect())
    }

    fn body_length(&mut self) -> Result<u64> {
        self.count()?;
        Ok(length(self.response_body()?))
    }

    fn body(&mut self, offset: u64, length: u32) -> Result<Vec<u8>> {
        self.count()?;
        Ok(part(self.response_body()?, offset, length))
    }

    fn part(&mut self) -> Result<wit::response::BodyPart> {
        self.count()?;
        let part = Self::part(self)?;
        Ok(wit::response::BodyPart { index: part.index, is_last: part.is_last })
    }

    fn keep(&mut self, length: u32) -> Result<()> {
        self.count()?;
        let part = Self::part(self)?;
        let most = self.shared.manifest.response_chunk.unwrap_or(0) / 2;
        let held = crate::host::length(self.response_body()?).min(most);
        if u64::from(length) > if part.is_last { 0 } else { held } {
            let what =
                "keep more of a part than it has, than half of `body.response_chunk`, or any of the last";
            return Err(FilterFailure::forbidden(what).into());
        }
        self.changes.keep(usize::try_from(length).unwrap_or(usize::MAX));
        Ok(())
    }

    fn set_header(&mut self, name: String, value: String) -> Result<()> {
        self.count()?;
        self.change_head(Change::SetHeader(header(&name)?, header_value(&value)?))
    }

    fn remove_header(&mut self, name: String) -> Result<()> {
        self.count()?;
        self.change_head(Change::RemoveHeader(header(&name)?))
    }

    fn set_body(&mut self, body: Vec<u8>) -> Result<()> {
        self.count()?;
        let manifest = &self.shared.manifest;
        let most = manifest.response_body.or(manifest.response_chunk.map(|part| part.saturating_mul(2)));
        self.set_body_in(Phase::Response, most, body)
    }
}

impl wit::config::Host for Call {
    fn json(&mut self) -> Result<String> {
        self.count()?;
        Ok(self.config.to_string())
    }
}

impl wit::session::Host for Call {
    fn claim(&mut self, name: String) -> Result<Option<wit::session::ClaimValue>> {
        use wit::session::ClaimValue;
        self.count()?;
        Ok(self.session.claims.get(&name).map(|claim| match claim {
            serde_json::Value::String(text) => ClaimValue::Text(text.clone()),
            other => ClaimValue::Json(other.to_string()),
        }))
    }

    fn user_id(&mut self) -> Result<String> {
        self.count()?;
        Ok(self.session.user_id.to_string())
    }

    fn conversation_id(&mut self) -> Result<String> {
        self.count()?;
        Ok(self.session.conversation_id.to_string())
    }

    fn sandbox_id(&mut self) -> Result<String> {
        self.count()?;
        Ok(self.session.sandbox_id.to_string())
    }
}

impl wit::log::Host for Call {
    fn write(&mut self, level: wit::log::Level, message: String) -> Result<()> {
        self.count()?;
        let level = match level {
            wit::log::Level::Debug => LogLevel::Debug,
            wit::log::Level::Info => LogLevel::Info,
            wit::log::Level::Warn => LogLevel::Warn,
        };
        self.log(level, &message);
        Ok(())
    }
}

impl wit::counter::Host for Call {
    fn add(&mut self, name: String, amount: u32) -> Result<()> {
        self.count()?;
        if self.shared.add(&name, amount) {
            Ok(())
        } else {
            Err(FilterFailure::forbidden("use a counter that is not in filter.toml's `counters`").into())
        }
    }
}

impl wit::rate_limit::Host for Call {
    fn take(&mut self, bucket: String, key: String, cost: u32) -> Result<Option<u64>> {
        self.count()?;
        let taken = self.shared.buckets.take(&bucket, &key, cost, Instant::now());
        let wait = taken.map_err(|error| {
            FilterFailure::forbidden(match error {
                TakeError::UnknownKind => "use a bucket that is not in filter.toml's `buckets`",
                TakeError::Key => "use a bucket key longer than 256 bytes",
                TakeError::Cost => "take more tokens than the bucket's `burst`",
            })
        })?;
        Ok(wait.map(|wait| u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)))
    }
}

impl wit::json_schema::Host for Call {
    fn check(&mut self, schema: String, document: Vec<u8>) -> Result<Vec<wit::json_schema::Mistake>> {
        self.count()?;
        let schema = self.schema(&schema)?;
        Ok(self.mistakes(&schema, &document)?)
    }

    fn check_body(&mut self, schema: String) -> Result<Vec<wit::json_schema::Mistake>> {
        self.count()?;
        let (schema, body) = (self.schema(&schema)?, self.request_body()?.clone());
        Ok(self.mistakes(&schema, &body)?)
    }
}

impl Call {
    /// Checks a document; what that costs is taken from the call before it is done.
    fn mistakes(
        &mut self,
        schema: &Schema,
        document: &[u8],
    ) -> Result<Vec<wit::json_schema::Mistake>, FilterFailure> {
        let reading = schema::reading(document)
            .map_err(|_too_long| FilterFailure::forbidden("check a document longer than 1 MiB"))?;
        self.charge(reading)?;
        let found = match off_workers(reading, || schema::read(document)) {
            Err(mistake) => vec![mistake],
            Ok(document) => {
                let work = schema.work(&document);
                self.charge(work)?;
                off_workers(work, || schema.mistakes(&document))
            }
        };
        let told = found.into_iter();
        Ok(told
            .map(|mistake| wit::json_schema::Mistake { pointer: mistake.pointer, message: mistake.message })
            .collect())
    }
}

/// Does what takes long where it holds up no other task of the runtime.
fn off_workers<Done>(work: Work, check: impl FnOnce() -> Done) -> Done {
    let flavor = Handle::try_current().map(|runtime| runtime.runtime_flavor());
    match flavor {
        Ok(RuntimeFlavor::MultiThread) if work > BIG_WORK => tokio::task::block_in_place(check),
        _ => check(),
    }
}
