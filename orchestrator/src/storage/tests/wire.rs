// SPDX-License-Identifier: Apache-2.0
//! What is sent to Google Cloud Storage, of which no server can be run here: an end of the wire that
//! notes each request and answers as the service's documentation says. That the real service takes
//! it was not run.

use super::*;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
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

/// One request: method, path, the generation that it must find, what it bears as authorization.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sent {
    method: String,
    path: String,
    generation: Option<String>,
    authorization: Option<String>,
}

/// A bucket of one object at most, whose generation is counted.
#[derive(Debug, Default)]
struct Bucket {
    sent: Vec<Sent>,
    generation: u64,
}

impl Bucket {
    fn answer(&mut self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let header = |name: &str| request.headers().get(name)?.to_str().ok().map(str::to_owned);
        let sent = Sent {
            method: request.method().to_string(),
            path: request.uri().path().to_owned(),
            generation: header("x-goog-if-generation-match"),
            authorization: header("authorization"),
        };
        let status = match (sent.method.as_str(), &sent.generation) {
            ("PUT", Some(wanted)) if *wanted != self.generation.to_string() => {
                StatusCode::PRECONDITION_FAILED
            }
            ("PUT", _) => {
                self.generation += 1;
                StatusCode::OK
            }
            ("GET" | "HEAD", _) if self.generation == 0 => StatusCode::NOT_FOUND,
            _ => StatusCode::OK,
        };
        self.sent.push(sent);
        Response::builder()
            .status(status)
            .header("etag", format!("\"tag-{}\"", self.generation))
            .header("x-goog-generation", self.generation.to_string())
            .header("last-modified", "Fri, 02 Jan 2026 03:04:05 GMT")
            .header("content-length", "0")
            .body(Full::new(Bytes::new()))
            .expect("an answer")
    }
}

async fn served(tasks: &Tasks) -> (Arc<Mutex<Bucket>>, String) {
    let bucket = Arc::new(Mutex::new(Bucket::default()));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let (shared, group) = (Arc::clone(&bucket), tasks.clone());
    tasks.spawn(async move |stop: Stop| {
        while let Some(Ok((stream, _))) = stop.run_until_cancelled(listener.accept()).await {
            let bucket = Arc::clone(&shared);
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = bucket.lock().expect("not poisoned").answer(&request);
                async move { Ok::<_, Infallible>(answer) }
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

fn gcs(folder: &std::path::Path, endpoint: &str) -> StorageSettings {
    let credentials = [("GOOGLE_BASE_URL", endpoint), ("GOOGLE_BEARER_TOKEN", "a-token-of-the-operator")];
    let credentials: BTreeMap<_, _> =
        credentials.map(|(name, value)| (name.to_owned(), Secret::new(value.to_owned()))).into();
    let chosen = Chosen {
        kind: StorageKind::Gcs,
        bucket: Some("bucket".to_owned()),
        azure_cloud: AzureCloud::Public,
        credentials,
    };
    StorageSettings { chosen, data_dir: folder.to_owned() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gcs_is_told_conditions_as_generations() {
    let (tasks, folder) = (Tasks::new(), tempfile::tempdir().expect("a folder"));
    let (bucket, endpoint) = served(&tasks).await;
    let database = Database::sqlite().await;
    let objects = gcs(folder.path(), &endpoint).connect().expect("connects");
    let storage = Storage::new(objects, database.store.clone(), Quota::default());
    let files = storage.of(&tenant("acme"), &user("u"));
    let first = put(&files, "f", &Condition::Nothing, "1").await.expect("is free").version;
    assert_eq!(first.as_str(), "tag-1");
    put(&files, "f", &Condition::Nothing, "x").await.expect_err("is taken");
    let second = put(&files, "f", &Condition::Version(first.clone()), "2").await.expect("is as seen").version;
    put(&files, "f", &Condition::Version(first), "x").await.expect_err("is another");
    assert_eq!(second.as_str(), "tag-2");
    let sent = bucket.lock().expect("not poisoned").sent.clone();
    let puts: Vec<_> = sent.iter().filter(|sent| sent.method == "PUT").collect();
    let generations: Vec<_> = puts.iter().map(|put| put.generation.as_deref()).collect();
    assert_eq!(generations, [Some("0"), Some("0"), Some("1")], "the last was not even sent");
    for one in &sent {
        assert_eq!(one.path, "/bucket/tenants%2Facme%2Fusers%2Fu%2Ffiles%2Ff");
        assert_eq!(one.authorization.as_deref(), Some("Bearer a-token-of-the-operator"));
    }
    tasks.shut_down(Duration::from_secs(10)).await.expect("ends");
}
