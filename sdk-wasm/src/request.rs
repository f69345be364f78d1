// SPDX-License-Identifier: Apache-2.0
//! The request, as a filter reads and changes it. Each read is a call to the host: keep what you
//! need twice.

use crate::headers;
use crate::host::request as host;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The request of this call.
///
/// Reads answer the request as it reached this filter, also after changes. Changes to names that
/// filters may not touch (credentials, cookies, framing, connection, forwarding) end the call,
/// and the request is refused.
#[derive(Debug)]
pub struct Request(());

impl Request {
    pub(crate) const fn of_this_call() -> Self {
        Self(())
    }

    /// The method, in capitals.
    #[must_use]
    pub fn method(&self) -> String {
        host::method()
    }

    /// The backend's name.
    #[must_use]
    pub fn backend(&self) -> String {
        host::backend()
    }

    /// The operation's id.
    #[must_use]
    pub fn operation(&self) -> String {
        host::operation()
    }

    /// The path within the backend.
    #[must_use]
    pub fn path(&self) -> String {
        host::path()
    }

    /// The template that the path matched, such as `/orders/{id}`.
    #[must_use]
    pub fn path_template(&self) -> String {
        host::path_template()
    }

    /// A path parameter, decoded.
    #[must_use]
    pub fn path_parameter(&self, name: &str) -> Option<String> {
        host::path_parameter(name)
    }

    /// A query parameter, decoded.
    #[must_use]
    pub fn query_parameter(&self, name: &str) -> Option<String> {
        host::query_parameter(name)
    }

    /// All query parameters, in order, decoded.
    #[must_use]
    pub fn query(&self) -> Vec<(String, String)> {
        host::query().into_iter().map(|field| (field.name, field.value)).collect()
    }

    /// A header by name, without case. Credentials and cookies are never there.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<String> {
        host::header(name)
    }

    /// The names of all headers that a filter may see.
    #[must_use]
    pub fn header_names(&self) -> Vec<String> {
        host::header_names()
    }

    /// The members of a header that is a list, such as `Accept`: split at commas outside quotes.
    #[must_use]
    pub fn header_list(&self, name: &str) -> Vec<String> {
        self.header(name).map(|value| headers::list(&value)).unwrap_or_default()
    }

    /// Whether `Content-Type` says that the body is JSON.
    #[must_use]
    pub fn is_json(&self) -> bool {
        self.header("content-type").is_some_and(|value| headers::is_json(&value))
    }

    /// The body's length. Needs `body.request` in the manifest.
    #[must_use]
    pub fn body_length(&self) -> u64 {
        host::body_length()
    }

    /// The whole body. Needs `body.request` in the manifest.
    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        host::body(0, u32::MAX)
    }

    /// Up to `length` bytes of the body from `offset` on.
    #[must_use]
    pub fn body_part(&self, offset: u64, length: u32) -> Vec<u8> {
        host::body(offset, length)
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// If it is not JSON, or not of this type.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.body())
    }

    /// Replaces all headers of this name by one.
    pub fn set_header(&mut self, name: &str, value: &str) {
        host::set_header(name, value);
    }

    /// Removes all headers of this name.
    pub fn remove_header(&mut self, name: &str) {
        host::remove_header(name);
    }

    /// Replaces all query parameters of this name by one.
    pub fn set_query_parameter(&mut self, name: &str, value: &str) {
        host::set_query_parameter(name, value);
    }

    /// Removes all query parameters of this name.
    pub fn remove_query_parameter(&mut self, name: &str) {
        host::remove_query_parameter(name);
    }

    /// Replaces the path; the new one is routed and judged like one that a sandbox sends.
    pub fn set_path(&mut self, path: &str) {
        host::set_path(path);
    }

    /// Replaces the body. Needs `body.request` in the manifest.
    pub fn set_body(&mut self, body: &[u8]) {
        host::set_body(body);
    }

    /// Replaces the body by JSON.
    ///
    /// # Errors
    /// If `value` cannot be JSON: a map whose keys are no strings, for one.
    pub fn set_json<T: Serialize>(&mut self, value: &T) -> Result<(), serde_json::Error> {
        self.set_body(&serde_json::to_vec(value)?);
        Ok(())
    }
}
