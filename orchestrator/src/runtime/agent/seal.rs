// SPDX-License-Identifier: Apache-2.0
//! Signing what is said to a sandbox that is reached over a network ([`postern_common::signed`]).

use super::{AgentError, Body};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::Ed25519KeyPair;
use bytes::Bytes;
use http::{HeaderValue, Request};
use postern_common::clock;
use postern_common::id::SandboxId;
use postern_common::signed::{Envelope, HEADER, NONCE_BYTES, hex};
use std::fmt;
use std::sync::Arc;

/// The body of a request that is all there, for its digest.
#[derive(Debug, Clone)]
pub(super) struct Whole(pub(super) Bytes);

/// Signs what is said to one pod as one sandbox. Clones are the same.
#[derive(Clone)]
pub(crate) struct Seal {
    key: Arc<Ed25519KeyPair>,
    pod: String,
    sandbox: SandboxId,
}

impl fmt::Debug for Seal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Seal").field("pod", &self.pod).field("sandbox", &self.sandbox).finish()
    }
}

impl Seal {
    /// Signs with `key` for the pod with this UID.
    #[must_use]
    pub(crate) const fn new(key: Arc<Ed25519KeyPair>, pod: String, sandbox: SandboxId) -> Self {
        Self { key, pod, sandbox }
    }

    /// Writes the signature into a request. Nothing of it may change afterwards.
    pub(super) fn put(&self, request: &mut Request<Body>) -> Result<(), AgentError> {
        let nonce = crate::keys::random(NONCE_BYTES).map_err(|_no_randomness| AgentError::Unsigned)?;
        let body = request.extensions().get::<Whole>();
        let envelope = Envelope {
            pod: self.pod.clone(),
            sandbox: self.sandbox.as_str().to_owned(),
            at: clock::unix_seconds(clock::now()),
            nonce: hex(nonce.reveal()),
            body: body.map(|Whole(bytes)| hex(digest(&SHA256, bytes).as_ref())),
        };
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
        let headers = request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let signature = self.key.sign(&envelope.signed(request.method().as_str(), target, headers));
        let header = HeaderValue::try_from(envelope.header(signature.as_ref()));
        request.headers_mut().insert(HEADER, header.map_err(|_no_header| AgentError::Unsigned)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::signature::{ED25519, KeyPair as _, UnparsedPublicKey};
    use http::Method;

    fn sealed(body: Option<&'static [u8]>) -> (Request<Body>, Vec<u8>) {
        let key = Ed25519KeyPair::generate().expect("a key");
        let public = key.public_key().as_ref().to_vec();
        let sandbox = SandboxId::from_random([7; 12]);
        let seal = Seal::new(Arc::new(key), "pod-1".to_owned(), sandbox);
        let mut request = Request::new(super::super::full(Bytes::new()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = "http://sandbox/a/b?c=d".parse().expect("a URI");
        request.headers_mut().insert("x-a", HeaderValue::from_static("1"));
        if let Some(body) = body {
            request.extensions_mut().insert(Whole(Bytes::from_static(body)));
        }
        seal.put(&mut request).expect("signs");
        (request, public)
    }

    #[test]
    fn a_signature_covers_target_headers_and_body() {
        let (request, public) = sealed(Some(b"body"));
        let header = request.headers().get(HEADER).expect("is there").to_str().expect("is text").to_owned();
        let (envelope, signature) = Envelope::parse(&header).expect("reads back");
        let headers = || request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let key = UnparsedPublicKey::new(&ED25519, public);
        assert!(key.verify(&envelope.signed("POST", "/a/b?c=d", headers()), &signature).is_ok());
        assert!(key.verify(&envelope.signed("POST", "/a/b", headers()), &signature).is_err());
        assert_eq!(envelope.body, Some(hex(digest(&SHA256, b"body").as_ref())));
        assert_eq!(envelope.pod, "pod-1");
    }

    #[test]
    fn a_streamed_body_is_said_to_be_one_and_no_nonce_comes_twice() {
        let nonce = |body| {
            let (request, _) = sealed(body);
            let header = request.headers().get(HEADER).expect("is there").to_str().expect("text").to_owned();
            Envelope::parse(&header).expect("reads back").0
        };
        assert_eq!(nonce(None).body, None);
        assert_ne!(nonce(None).nonce, nonce(None).nonce);
    }
}
