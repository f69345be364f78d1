// SPDX-License-Identifier: Apache-2.0
//! Real stores, started by a test and ended with it.

use crate::storage::StorageSettings;
use bytes::Bytes;
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use postern_common::secret::Secret;
use postern_common::settings::{AzureCloud, Storage as Chosen, StorageKind};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use url::Url;

/// How long a server may take to answer, also on a busy machine.
const START_TIME: Duration = Duration::from_secs(60);
/// Azurite's one account: every installation of it has these (its documentation).
const AZURITE_ACCOUNT: &str = "devstoreaccount1";
const AZURITE_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
pub(super) const S3_SECRET: &str = "a-secret-that-is-never-shown";

/// A server that ends with its test, or a folder.
pub(super) struct Server {
    chosen: Chosen,
    pub(super) folder: TempDir,
    process: Option<Child>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill().is_ok() && process.wait().is_ok();
        }
    }
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// A program that `scripts/stores.sh` brings; `None` if it is left out on purpose.
fn program(place: &str) -> Option<PathBuf> {
    let home = || variable("HOME").map(|home| PathBuf::from(home).join(".cache/postern"));
    let cache = variable("POSTERN_CACHE").map(PathBuf::from).or_else(home).expect("HOME is set");
    let program = cache.join(place);
    if program.exists() {
        return Some(program);
    }
    let may_skip = variable("POSTERN_ALLOW_SKIP").is_some_and(|value| value == "1");
    assert!(may_skip, "no {}: run scripts/stores.sh, or set POSTERN_ALLOW_SKIP=1", program.display());
    println!("left out: no {}", program.display());
    None
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("an address").port()
}

impl Server {
    pub(super) fn settings(&self) -> StorageSettings {
        StorageSettings { chosen: self.chosen.clone(), data_dir: self.folder.path().to_owned() }
    }

    pub(super) fn with(&self, change: impl FnOnce(&mut Chosen)) -> StorageSettings {
        let mut settings = self.settings();
        change(&mut settings.chosen);
        settings
    }

    pub(super) fn folder() -> Self {
        let chosen = chosen(StorageKind::Local, None, &[]);
        Self { chosen, folder: tempfile::tempdir().expect("a folder"), process: None }
    }

    /// One that somebody else runs.
    pub(super) fn served(chosen: Chosen) -> Self {
        Self { chosen, folder: tempfile::tempdir().expect("a folder"), process: None }
    }

    pub(super) async fn s3() -> Option<Self> {
        let program = program("versitygw/versitygw")?;
        let (port, folder) = (free_port(), tempfile::tempdir().expect("a folder"));
        std::fs::create_dir(folder.path().join("bucket")).expect("makes");
        let mut command = Command::new(program);
        command
            .args(["--port", &format!("127.0.0.1:{port}"), "--access", "tester", "--secret", S3_SECRET])
            .args(["--quiet", "posix"])
            .arg(folder.path());
        let endpoint = format!("http://127.0.0.1:{port}");
        let chosen = chosen(
            StorageKind::S3,
            Some("bucket"),
            &[
                ("AWS_ENDPOINT_URL", &endpoint),
                ("AWS_ACCESS_KEY_ID", "tester"),
                ("AWS_SECRET_ACCESS_KEY", S3_SECRET),
                ("AWS_REGION", "us-east-1"),
            ],
        );
        Some(Self::started(command, port, folder, chosen).await)
    }

    pub(super) async fn azure() -> Option<Self> {
        let program = program("azurite/node_modules/.bin/azurite-blob")?;
        let (port, folder) = (free_port(), tempfile::tempdir().expect("a folder"));
        let mut command = Command::new(program);
        command
            .args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string()])
            .args(["--silent", "--skipApiVersionCheck", "--location"])
            .arg(folder.path())
            .current_dir(folder.path());
        let endpoint = format!("http://127.0.0.1:{port}/{AZURITE_ACCOUNT}");
        let chosen = chosen(
            StorageKind::Azure,
            Some("container"),
            &[
                ("AZURE_STORAGE_ENDPOINT", &endpoint),
                ("AZURE_STORAGE_ACCOUNT_NAME", AZURITE_ACCOUNT),
                ("AZURE_STORAGE_ACCOUNT_KEY", AZURITE_KEY),
            ],
        );
        let server = Self::started(command, port, folder, chosen).await;
        make_container(&endpoint).await;
        Some(server)
    }

    async fn started(mut command: Command, port: u16, folder: TempDir, chosen: Chosen) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().expect("starts");
        let server = Self { chosen, folder, process: Some(process) };
        let deadline = Instant::now() + START_TIME;
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(Instant::now() < deadline, "the server does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server
    }
}

fn chosen(kind: StorageKind, bucket: Option<&str>, variables: &[(&str, &str)]) -> Chosen {
    let credentials: BTreeMap<_, _> = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), Secret::new((*value).to_owned())))
        .collect();
    Chosen {
        kind,
        bucket: bucket.map(str::to_owned),
        azure_cloud: AzureCloud::Public,
        credentials,
        cache: None,
    }
}

/// The crate makes no containers: this is the one request of a test's own, signed as Azure's
/// documentation of `Authorize with Shared Key` says.
async fn make_container(endpoint: &str) {
    use aws_lc_rs::hmac;
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD as BASE64;
    let url: Url = format!("{endpoint}/container?restype=container").parse().expect("a URL");
    let date = jiff::fmt::rfc2822::DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&postern_common::clock::now())
        .expect("a date");
    let path = url.path();
    let text = format!(
        "PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{date}\nx-ms-version:2021-08-06\n/{AZURITE_ACCOUNT}{path}\nrestype:container"
    );
    let key = hmac::Key::new(hmac::HMAC_SHA256, &BASE64.decode(AZURITE_KEY).expect("base64"));
    let signature = BASE64.encode(hmac::sign(&key, text.as_bytes()).as_ref());
    let authorization = format!("SharedKey {AZURITE_ACCOUNT}:{signature}");
    let headers = [
        ("x-ms-date", date.as_str()),
        ("x-ms-version", "2021-08-06"),
        ("authorization", authorization.as_str()),
    ];
    let status = send("PUT", &url, &headers, Bytes::new()).await;
    assert_eq!(status, 201, "makes the container");
}

/// PUTs to a URL that was signed; the status if it is no success.
pub(super) async fn put(url: &Url, headers: &[(&str, &str)], content: Bytes) -> Result<(), u16> {
    let status = send("PUT", url, headers, content).await;
    if (200..300).contains(&status) { Ok(()) } else { Err(status) }
}

/// Sends a request over plain HTTP; answers with its status.
pub(super) async fn send(method: &str, url: &Url, headers: &[(&str, &str)], content: Bytes) -> u16 {
    let authority = format!("127.0.0.1:{}", url.port().expect("a port"));
    let stream = tokio::net::TcpStream::connect(&authority).await.expect("connects");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("speaks");
    let target = &url[url::Position::BeforePath..url::Position::AfterQuery];
    let mut request = http::Request::builder().method(method).uri(target).header("host", &authority);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(content)).expect("a request");
    let answered = async { sender.send_request(request).await.expect("answers").status().as_u16() };
    tokio::pin!(answered, connection);
    loop {
        tokio::select! {
            status = &mut answered => return status,
            ended = &mut connection => drop(ended),
        }
    }
}
