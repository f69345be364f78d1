// SPDX-License-Identifier: Apache-2.0
//! Content that is no JSON: files up and down, also by URLs that need no key.

use super::{ANSWER_TIME, Answer, Body, Client, answer, dial, refusal};
use crate::failure::Failure;
use anyhow::Context as _;
use bytes::Bytes;
use http::header::HOST;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use serde_json::Value;
use url::Url;

impl Client {
    /// Puts content; headers are pairs.
    pub(crate) async fn put_content(
        &self,
        path: &str,
        headers: &[(&str, String)],
        content: Bytes,
    ) -> Result<Answer, Failure> {
        let mut request = self.request(Method::PUT, path, None, "application/json")?;
        add(&mut request, headers)?;
        *request.body_mut() = whole(content);
        answer(self.exchange(request).await?).await
    }

    /// Gets content as it comes.
    pub(crate) async fn get_content(
        &self,
        path: &str,
        headers: &[(&str, String)],
    ) -> Result<Response<Incoming>, Failure> {
        let mut request = self.request(Method::GET, path, None, "*/*")?;
        add(&mut request, headers)?;
        self.exchange(request).await
    }

    /// Sends content to a URL that was signed for it: of this server, if it is a path, else of
    /// whatever store it names. No key goes along.
    pub(crate) async fn put_signed(&self, url: &str, headers: &Value, content: Bytes) -> Result<(), Failure> {
        let url = self.whole_url(url)?;
        let target = url[url::Position::BeforePath..url::Position::AfterQuery].to_owned();
        let mut request =
            Request::builder().method(Method::PUT).uri(target).header(HOST, dial::authority(&url));
        for (name, value) in headers.as_object().into_iter().flatten() {
            request = request.header(name.as_str(), value.as_str().unwrap_or_default());
        }
        let request = request.body(whole(content)).context("a request of ours")?;
        // What is shown of it has no signature.
        let shown = url[..url::Position::AfterPath].to_owned();
        let unreachable = |reason: String| Failure::Unreachable { url: shown.clone(), reason };
        let mut sender =
            dial::dial(&url, &self.tasks).await.map_err(|error| unreachable(format!("{error:#}")))?;
        let answer = tokio::time::timeout(ANSWER_TIME, sender.send_request(request)).await;
        let response = answer
            .map_err(|_elapsed| unreachable(format!("no answer within {} s", ANSWER_TIME.as_secs())))?
            .map_err(|error| unreachable(error.to_string()))?;
        if response.status().is_success() { Ok(()) } else { Err(refusal(response).await) }
    }

    /// A URL as the server told it, with the server's own address where it is a path.
    pub(crate) fn whole_url(&self, url: &str) -> Result<Url, Failure> {
        Ok(self.connection.url.join(url).context("the server told a URL that is none")?)
    }
}

/// A body that is all there.
fn whole(content: Bytes) -> Body {
    Full::new(content).map_err(|never| match never {}).boxed_unsync()
}

fn add(request: &mut Request<Body>, headers: &[(&str, String)]) -> Result<(), Failure> {
    for (name, value) in headers {
        let name = http::HeaderName::try_from(*name).context("a header of ours")?;
        let value = http::HeaderValue::try_from(value.as_str())
            .map_err(|_malformed| Failure::Usage(format!("`{value}` cannot be sent in a header")))?;
        request.headers_mut().insert(name, value);
    }
    Ok(())
}
