// SPDX-License-Identifier: Apache-2.0
//! The backend's response, as a filter reads and changes it.

use crate::headers;
use crate::host::response as host;
use crate::request::Request;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The response of this call. The rules of [`Request`] hold here too.
#[derive(Debug)]
pub struct Response {
    request: Request,
}

impl Response {
    pub(crate) const fn of_this_call() -> Self {
        Self { request: Request::of_this_call() }
    }

    /// The request that this answers, without its body. It can no longer be changed.
    #[must_use]
    pub const fn request(&self) -> &Request {
        &self.request
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> u16 {
        host::status()
    }

    /// A header by name, without case. Cookies are never there.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<String> {
        host::header(name)
    }

    /// The names of all headers that a filter may see.
    #[must_use]
    pub fn header_names(&self) -> Vec<String> {
        host::header_names()
    }

    /// The body's length. Needs `body.response` in the manifest.
    #[must_use]
    pub fn body_length(&self) -> u64 {
        host::body_length()
    }

    /// The whole body. Needs `body.response` in the manifest.
    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        host::body(0, u32::MAX)
    }

    /// Up to `length` bytes of the body from `offset` on.
    #[must_use]
    pub fn body_part(&self, offset: u64, length: u32) -> Vec<u8> {
        host::body(offset, length)
    }

    /// Whether `Content-Type` says that the body is JSON.
    #[must_use]
    pub fn is_json(&self) -> bool {
        self.header("content-type").is_some_and(|value| headers::is_json(&value))
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// If it is not JSON, or not of this type.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.body())
    }

    /// Which part of the body this call is about. Needs `body.response_chunk` in the manifest.
    #[must_use]
    pub fn part(&self) -> Part {
        let part = host::part();
        Part { index: part.index, is_last: part.is_last }
    }

    /// Holds the last `length` bytes of this part back: they come first in the next part. At most
    /// half of the manifest's `body.response_chunk`, and nothing of the last part.
    pub fn keep(&mut self, length: u32) {
        host::keep(length);
    }

    /// Replaces all headers of this name by one.
    pub fn set_header(&mut self, name: &str, value: &str) {
        host::set_header(name, value);
    }

    /// Removes all headers of this name.
    pub fn remove_header(&mut self, name: &str) {
        host::remove_header(name);
    }

    /// Replaces the body. Needs `body.response` in the manifest.
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

/// A part of a response's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Counts the calls for one response, from 0. Headers can be changed in the first only.
    pub index: u64,
    /// Whether nothing follows.
    pub is_last: bool,
}
