// SPDX-License-Identifier: Apache-2.0
//! The XML API of Google Cloud Storage as far as it is sent to, as its documentation has it: objects
//! with generations, conditions on them, parts, pages of lists, tokens and signed URLs. No emulator
//! that could be had speaks it (fake-gcs-server 1.56 has no PUT, DELETE or parts by it,
//! gcp-storage-emulator no conditions). That the real service answers alike was not run.

use super::*;
use crate::keys::hex;
use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64_URL;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use postern_common::secret::Secret;
use postern_common::settings::{AzureCloud, Storage as Chosen, StorageKind};
use postern_common::tasks::{Stop, Tasks};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Mutex;
use tokio::net::TcpListener;

/// Objects of one page of a list: few, so that there are pages.
const PAGE: usize = 7;
/// The token that it takes.
pub(super) const TOKEN: &str = "a-token-of-the-operator";

/// One request: method, path, the generation that it must find, what it bears as authorization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) generation: Option<String>,
    pub(super) authorization: Option<String>,
}

#[derive(Debug, Clone, Default)]
struct Object {
    bytes: Bytes,
    generation: u64,
    /// When, in whole seconds.
    made: Timestamp,
    /// What was sent with it and comes back.
    headers: Vec<(String, String)>,
    parts: usize,
}

impl Object {
    /// Of its bytes, as theirs is: the same bytes have the same.
    fn e_tag(&self) -> String {
        let digest = hex(Digest::of(&self.bytes).as_bytes().get(..16).unwrap_or_default());
        if self.parts > 0 { format!("\"{digest}-{}\"", self.parts) } else { format!("\"{digest}\"") }
    }
}

/// A bucket.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    pub(super) sent: Vec<Sent>,
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, (Object, BTreeMap<u32, Bytes>)>,
    generation: u64,
    /// Whose signatures of URLs are good.
    pub(super) signer: Option<Vec<u8>>,
    /// Whether it lists what is in a folder before what only has a name that begins so, as no service should.
    pub(super) lists_by_folders: bool,
}

type Query = BTreeMap<String, String>;

fn answer(status: u16) -> http::response::Builder {
    Response::builder().status(status)
}

fn empty(builder: http::response::Builder) -> Response<Full<Bytes>> {
    builder.body(Full::default()).expect("an answer")
}

fn text(body: String) -> Response<Full<Bytes>> {
    answer(200).header("content-type", "application/xml").body(Full::new(body.into())).expect("an answer")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The name of an object, which is the whole path after the bucket's.
fn name(path: &str) -> String {
    let raw = path.strip_prefix("/bucket").unwrap_or_default().trim_start_matches('/');
    // What a form has as `+` is one here.
    let pair = format!("n={}", raw.replace('+', "%2B"));
    url::form_urlencoded::parse(pair.as_bytes()).next().map(|(_, name)| name.into_owned()).unwrap_or_default()
}

impl Bucket {
    fn answer(&mut self, head: &http::request::Parts, body: Bytes) -> Response<Full<Bytes>> {
        let header = |name: &str| head.headers.get(name)?.to_str().ok().map(str::to_owned);
        let query: Query = url::form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes())
            .into_owned()
            .collect();
        self.sent.push(Sent {
            method: head.method.to_string(),
            path: head.uri.path().to_owned(),
            generation: header("x-goog-if-generation-match"),
            authorization: header("authorization"),
        });
        let bearer =
            header("authorization").and_then(|value| value.strip_prefix("Bearer ").map(str::to_owned));
        let is_known = bearer.is_some_and(|token| token == TOKEN || self.is_own_token(&token));
        if !is_known && !self.is_signed(head, &query) {
            return empty(answer(403));
        }
        let name = name(head.uri.path());
        match (&head.method, name.is_empty()) {
            (&Method::GET, true) => self.list(&query),
            (&Method::GET | &Method::HEAD, false) => self.read(&name, head),
            (&Method::PUT, false) if query.contains_key("uploadId") => self.part(&query, body),
            (&Method::PUT, false) => self.put(&name, &head.headers, body),
            (&Method::POST, false) if query.contains_key("uploads") => self.begin(&head.headers),
            (&Method::POST, false) => self.complete(&name, &query),
            (&Method::DELETE, false) => match query.get("uploadId") {
                Some(upload) => empty(answer(if self.uploads.remove(upload).is_some() { 204 } else { 404 })),
                None => empty(answer(if self.objects.remove(&name).is_some() { 204 } else { 404 })),
            },
            _ => empty(answer(405)),
        }
    }

    fn put(&mut self, name: &str, headers: &HeaderMap, body: Bytes) -> Response<Full<Bytes>> {
        let there = self.objects.get(name).map_or(0, |object| object.generation);
        let wanted = headers.get("x-goog-if-generation-match").and_then(|value| value.to_str().ok());
        if wanted.is_some_and(|wanted| wanted != there.to_string()) {
            return empty(answer(412));
        }
        self.keep(name, Object { bytes: body, headers: kept(headers), ..Object::default() })
    }

    fn keep(&mut self, name: &str, object: Object) -> Response<Full<Bytes>> {
        self.generation += 1;
        let made = Timestamp::from_second(clock::now().as_second()).expect("a time");
        let object = Object { generation: self.generation, made, ..object };
        let e_tag = object.e_tag();
        self.objects.insert(name.to_owned(), object);
        let told =
            format!("<CompleteMultipartUploadResult><ETag>{e_tag}</ETag></CompleteMultipartUploadResult>");
        answer(200)
            .header("etag", e_tag)
            .header("x-goog-generation", self.generation.to_string())
            .body(Full::new(told.into()))
            .expect("an answer")
    }

    fn begin(&mut self, headers: &HeaderMap) -> Response<Full<Bytes>> {
        self.generation += 1;
        let upload = format!("upload-{}", self.generation);
        let object = Object { headers: kept(headers), ..Object::default() };
        self.uploads.insert(upload.clone(), (object, BTreeMap::new()));
        text(format!(
            "<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
        ))
    }

    fn part(&mut self, query: &Query, body: Bytes) -> Response<Full<Bytes>> {
        let number = query.get("partNumber").and_then(|number| number.parse().ok());
        let upload = query.get("uploadId").and_then(|upload| self.uploads.get_mut(upload));
        let (Some(number), Some((_, parts))) = (number, upload) else { return empty(answer(404)) };
        parts.insert(number, body);
        empty(answer(200).header("etag", format!("\"part-{number}\"")))
    }

    fn complete(&mut self, name: &str, query: &Query) -> Response<Full<Bytes>> {
        let upload = query.get("uploadId").and_then(|upload| self.uploads.remove(upload));
        let Some((object, parts)) = upload else { return empty(answer(404)) };
        let count = parts.len();
        let bytes = parts.into_values().collect::<Vec<_>>().concat().into();
        self.keep(name, Object { bytes, parts: count, ..object })
    }

    fn read(&self, name: &str, head: &http::request::Parts) -> Response<Full<Bytes>> {
        let Some(object) = self.objects.get(name) else { return empty(answer(404)) };
        let header = |name: &str| head.headers.get(name)?.to_str().ok();
        if header("if-match").is_some_and(|wanted| wanted != object.e_tag()) {
            return empty(answer(412));
        }
        let size = object.bytes.len();
        let range = header("range").and_then(|range| {
            let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
            let end = to.parse::<usize>().map_or(size, |last| (last + 1).min(size));
            Some(from.parse::<usize>().ok()?..end)
        });
        let mut builder = match &range {
            Some(range) => {
                let told = format!("bytes {}-{}/{size}", range.start, range.end.saturating_sub(1));
                answer(206).header("content-range", told)
            }
            None => answer(200),
        };
        let bytes = object.bytes.slice(range.unwrap_or(0..size));
        let made = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&object.made);
        let made = made.expect("a date");
        for (name, value) in &object.headers {
            builder = builder.header(name, value);
        }
        builder = builder
            .header("etag", object.e_tag())
            .header("x-goog-generation", object.generation.to_string())
            .header("last-modified", made)
            .header("content-length", bytes.len().to_string());
        let body = if head.method == Method::HEAD { Bytes::new() } else { bytes };
        builder.body(Full::new(body)).expect("an answer")
    }

    fn list(&self, query: &Query) -> Response<Full<Bytes>> {
        let prefix = query.get("prefix").cloned().unwrap_or_default();
        let place =
            |name: &str| if self.lists_by_folders { name.replace('/', "\0") } else { name.to_owned() };
        let before = query.get("continuation-token").map(|last| place(last)).unwrap_or_default();
        let after = query.get("start-after").cloned().unwrap_or_default();
        let is_asked =
            |name: &str| name.starts_with(&prefix) && name > after.as_str() && place(name) > before;
        let mut found: Vec<_> = self.objects.iter().filter(|(name, _)| is_asked(name)).collect();
        found.sort_by_key(|(name, _)| place(name));
        let mut found = found.into_iter().peekable();
        let (mut page, mut last) = (String::new(), String::new());
        for (name, object) in found.by_ref().take(PAGE) {
            let (key, e_tag, size, made) = (escaped(name), object.e_tag(), object.bytes.len(), object.made);
            page.push_str(&format!(
                "<Contents><Key>{key}</Key><Size>{size}</Size><ETag>{e_tag}</ETag>\
                 <LastModified>{made}</LastModified></Contents>"
            ));
            last.clone_from(name);
        }
        if found.peek().is_some() {
            page.push_str(&format!("<NextContinuationToken>{}</NextContinuationToken>", escaped(&last)));
        }
        text(format!("<ListBucketResult>{page}</ListBucketResult>"))
    }

    /// Whether a service account with the key of `signer` made this token for itself (RFC 7515).
    fn is_own_token(&self, token: &str) -> bool {
        let (Some(signer), Some((signed, signature))) = (&self.signer, token.rsplit_once('.')) else {
            return false;
        };
        let Ok(signature) = BASE64_URL.decode(signature) else { return false };
        let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, signer);
        key.verify(signed.as_bytes(), &signature).is_ok()
    }

    /// Whether a URL bears a signature of `signer` for just this request (V4 signing with a service
    /// account's key, as the documentation of canonical requests says).
    fn is_signed(&self, head: &http::request::Parts, query: &Query) -> bool {
        let Some(signer) = &self.signer else { return false };
        let field = |name: &str| query.get(name).cloned().unwrap_or_default();
        let (raw, date) = (head.uri.query().unwrap_or_default(), field("X-Goog-Date"));
        let mut pairs: Vec<&str> =
            raw.split('&').filter(|pair| !pair.starts_with("X-Goog-Signature=")).collect();
        pairs.sort_unstable();
        let canonical = format!(
            "{}\n{}\n{}\nhost:storage.googleapis.com\n\nhost\nUNSIGNED-PAYLOAD",
            head.method,
            head.uri.path(),
            pairs.join("&")
        );
        let credential = field("X-Goog-Credential");
        let scope = credential.split_once('/').map(|(_, scope)| scope).unwrap_or_default();
        let digest = hex(Digest::of(canonical.as_bytes()).as_bytes());
        let signed = format!("GOOG4-RSA-SHA256\n{date}\n{scope}\n{digest}");
        let signature = unhexed(&field("X-Goog-Signature"));
        let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, signer);
        key.verify(signed.as_bytes(), &signature).is_ok()
    }
}

fn unhexed(text: &str) -> Vec<u8> {
    let pair = |at: usize| text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    (0..text.len()).step_by(2).map_while(pair).collect()
}

/// What of a request is kept with its object.
fn kept(headers: &HeaderMap) -> Vec<(String, String)> {
    let is_kept = |name: &str| name.starts_with("x-goog-meta-") || name == "content-type";
    let text = |value: &http::HeaderValue| value.to_str().expect("is text").to_owned();
    let kept = headers.iter().filter(|(name, _)| is_kept(name.as_str()));
    kept.map(|(name, value)| (name.as_str().to_owned(), text(value))).collect()
}

/// Serves a bucket until the tasks end; the bucket, and where it is.
pub(super) async fn served(tasks: &Tasks) -> (Arc<Mutex<Bucket>>, String) {
    let bucket = Arc::new(Mutex::new(Bucket::default()));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let (shared, group) = (Arc::clone(&bucket), tasks.clone());
    tasks.spawn(async move |stop: Stop| {
        while let Some(Ok((stream, _))) = stop.run_until_cancelled(listener.accept()).await {
            let bucket = Arc::clone(&shared);
            let service = service_fn(move |request: Request<Incoming>| {
                let bucket = Arc::clone(&bucket);
                async move {
                    let (head, body) = request.into_parts();
                    let Ok(body) = body.collect().await else {
                        return Ok::<_, Infallible>(empty(answer(StatusCode::BAD_REQUEST.as_u16())));
                    };
                    Ok(bucket.lock().expect("not poisoned").answer(&head, body.to_bytes()))
                }
            });
            group.spawn(async move |stop: Stop| {
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                drop(stop.run_until_cancelled(connection).await);
            });
        }
    });
    (bucket, endpoint)
}

/// The settings of whoever uses it, with this credential.
pub(super) fn chosen(endpoint: &str, (name, value): (&str, &str)) -> Chosen {
    let credentials = [("GOOGLE_BASE_URL", endpoint), (name, value)];
    let credentials: BTreeMap<_, _> =
        credentials.map(|(name, value)| (name.to_owned(), Secret::new(value.to_owned()))).into();
    Chosen {
        kind: StorageKind::Gcs,
        bucket: Some("bucket".to_owned()),
        azure_cloud: AzureCloud::Public,
        credentials,
        cache: None,
    }
}
