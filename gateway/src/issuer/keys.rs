// SPDX-License-Identifier: Apache-2.0
//! The issuer's key set, fetched and kept: bounded in size, in time and in how often.

use super::Issuer;
use crate::listener::OwnedExecutor;
use crate::upstream::address::UpstreamRules;
use crate::upstream::{Authorities, Connector, TlsUnusable};
use bytes::Bytes;
use http::header::{ACCEPT, HeaderValue};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::client::legacy::Client;
use postern_common::tasks::{Stop, Tasks};
use postern_common::token::issuer::{BadIssuerKeys, IssuerKeys};
use rustls::pki_types::CertificateDer;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use url::Url;

/// The largest set that is read.
const SET_BYTES: usize = 256 * 1024;
/// From asking to the last byte.
const FETCH_TIME: Duration = Duration::from_secs(5);
/// How often the set is looked at without a reason.
const REFRESH: Duration = Duration::from_secs(5 * 60);
/// After a failure, doubling up to [`REFRESH`].
const RETRY: Duration = Duration::from_secs(1);
/// A set that could not be looked at for so long is believed no more.
const BELIEVED: Duration = Duration::from_secs(24 * 60 * 60);
/// Unknown keys make us look again no more often than this, whoever sends them.
const BETWEEN_LOOKS: Duration = Duration::from_secs(10);

/// A URL that an issuer's keys may be fetched from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwksUrl(Url);

/// A URL that keys may not be fetched from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` must begin with `https://` (`http://` only on loopback), and hold no password")]
pub struct BadJwksUrl(String);

impl std::str::FromStr for JwksUrl {
    type Err = BadJwksUrl;

    fn from_str(text: &str) -> Result<Self, BadJwksUrl> {
        let url = Url::parse(text).map_err(|_malformed| BadJwksUrl(text.to_owned()))?;
        let is_near = match url.host() {
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            Some(url::Host::Domain(name)) => name == "localhost",
            None => false,
        };
        let is_private = url.scheme() == "https" || (url.scheme() == "http" && is_near);
        let is_bare = url.username().is_empty() && url.password().is_none();
        if is_private && is_bare && url.host().is_some() {
            Ok(Self(url))
        } else {
            Err(BadJwksUrl(format!("{}://{}", url.scheme(), url.host_str().unwrap_or_default())))
        }
    }
}

/// Where the keys are, and who waits for them.
#[derive(Debug)]
pub(super) struct Fetching {
    url: JwksUrl,
    wanted: Notify,
    /// Counts looks that have ended, well or not.
    looks: watch::Sender<u64>,
    last: Mutex<Option<Instant>>,
}

impl Fetching {
    pub(super) fn new(url: JwksUrl) -> Self {
        Self { url, wanted: Notify::new(), looks: watch::Sender::new(0), last: Mutex::default() }
    }

    /// Waits until the set was looked at once more; not at all if that was a moment ago.
    pub(super) async fn once_more(&self) {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| last.elapsed() < BETWEEN_LOOKS) {
            return;
        }
        let mut looks = self.looks.subscribe();
        self.wanted.notify_one();
        // Late or ended: whoever asks looks at the keys that there are.
        drop(timeout(FETCH_TIME, looks.changed()).await);
    }

    fn looked(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.looks.send_modify(|looks| *looks = looks.wrapping_add(1));
    }
}

/// Why there is no newer set.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("the issuer's key set could not be fetched")]
    Fetch(#[source] hyper_util::client::legacy::Error),
    #[error("the issuer answered {0}")]
    Status(StatusCode),
    #[error("the issuer's key set is longer than 256 KiB, or was cut")]
    Body,
    #[error("the issuer did not answer in time")]
    Slow,
    #[error("the issuer's key set: {0}")]
    Keys(#[from] BadIssuerKeys),
    #[error("the issuer's URL is none that can be asked")]
    Url(#[from] http::Error),
}

/// A client that reaches the issuer and nothing else.
type IssuerClient = Client<Connector, Empty<Bytes>>;

/// Keys cannot be fetched.
#[derive(Debug, thiserror::Error)]
pub enum KeepKeysError {
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsUnusable),
    /// The URL's host.
    #[error("the issuer's host cannot be reached: {0}")]
    Host(String),
}

/// Keeps the issuer's keys up to date until `tasks` are stopped; nothing to do where they were given.
///
/// # Errors
/// [`KeepKeysError`].
pub(crate) fn keep_keys(
    issuer: &Arc<Issuer>,
    authorities: Vec<CertificateDer<'static>>,
    tasks: &Tasks,
) -> Result<(), KeepKeysError> {
    let Some(fetching) = &issuer.fetching else { return Ok(()) };
    let JwksUrl(url) = &fetching.url;
    let place =
        format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default());
    let rules = UpstreamRules::new(&[place], &[]).map_err(|mistakes| {
        KeepKeysError::Host(mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
    })?;
    let authorities = Authorities::new(authorities).map_err(TlsUnusable)?;
    let connector = Connector::new(rules, &authorities, &[b"http/1.1"]).map_err(TlsUnusable)?;
    let client: IssuerClient = Client::builder(OwnedExecutor(tasks.clone())).build(connector);
    let issuer = Arc::clone(issuer);
    tasks.spawn(move |stop| keep(issuer, client, stop));
    Ok(())
}

async fn keep(issuer: Arc<Issuer>, client: IssuerClient, stop: Stop) {
    let Some(fetching) = &issuer.fetching else { return };
    let (mut wait, mut believed) = (RETRY, Instant::now());
    let mut known = None;
    loop {
        match stop.run_until_cancelled(fetch(&issuer, fetching, &client)).await {
            None => return,
            Some(Ok((text, keys))) => {
                if known.as_ref() != Some(&text) {
                    tracing::info!(url = %fetching.url.0, "the issuer's keys are known");
                    issuer.replace_keys(Some(keys));
                    known = Some(text);
                }
                (wait, believed) = (REFRESH, Instant::now());
            }
            Some(Err(error)) => {
                let cause: &dyn std::error::Error = &error;
                tracing::warn!(url = %fetching.url.0, error = cause, cause = cause.source(), "the issuer's keys are as before");
                wait = if wait == REFRESH { RETRY } else { (wait * 2).min(REFRESH) };
                if believed.elapsed() > BELIEVED && issuer.has_keys() {
                    tracing::error!("the issuer's keys are too old to be believed");
                    issuer.replace_keys(None);
                    known = None;
                }
            }
        }
        fetching.looked();
        let pause = async {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = fetching.wanted.notified() => {}
            }
        };
        if stop.run_until_cancelled(pause).await.is_none() {
            return;
        }
    }
}

async fn fetch(
    issuer: &Issuer,
    fetching: &Fetching,
    client: &IssuerClient,
) -> Result<(Bytes, IssuerKeys), FetchError> {
    let uri: Uri = fetching.url.0.as_str().parse().map_err(http::Error::from)?;
    let mut request = Request::get(uri).body(Empty::new())?;
    request
        .headers_mut()
        .insert(ACCEPT, HeaderValue::from_static("application/jwk-set+json, application/json"));
    let asked = async {
        let answer = client.request(request).await.map_err(FetchError::Fetch)?;
        if answer.status() != StatusCode::OK {
            return Err(FetchError::Status(answer.status()));
        }
        let body = Limited::new(answer.into_body(), SET_BYTES).collect().await;
        Ok(body.map_err(|_too_long_or_cut| FetchError::Body)?.to_bytes())
    };
    let text = timeout(FETCH_TIME, asked).await.map_err(|_elapsed| FetchError::Slow)??;
    let keys = IssuerKeys::of_set(issuer.verifier.rules().algorithm, &text)?;
    Ok((text, keys))
}
