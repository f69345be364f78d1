// SPDX-License-Identifier: Apache-2.0
//! The backend's response, as a filter reads and changes it.

use crate::host::response as host;
use crate::request::Request;

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
}
