// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::files::Files;
use crate::identity::Identity;
use crate::process::Processes;
use crate::reaper::Exits;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use http::StatusCode;
use std::path::Path;

const POD: &str = "0f8b3c1e-1111-4222-8333-444455556666";
const SANDBOX: &str = "sandbox-abcdefghijkl";
const IDENTIFY: &str = "/postern.Control/Identify";
const START: &str = "/process.Process/Start";
const PATIENCE: Duration = Duration::from_secs(60);

/// A pod's sandboxd on a free port, and the orchestrator's key.
struct Pod {
    client: SendRequest<Inward>,
    key: Ed25519KeyPair,
    identity: Arc<Identity>,
    nonce: u8,
    _tasks: Tasks,
}

/// What of a good message is to be different.
#[derive(Default)]
struct Wrong {
    pod: Option<&'static str>,
    sandbox: Option<&'static str>,
    age: i64,
    is_streamed: bool,
    key: Option<Ed25519KeyPair>,
    nonce: Option<u8>,
}

impl Pod {
    async fn start() -> Self {
        let tasks = Tasks::new();
        let key = Ed25519KeyPair::generate().expect("a key");
        let identity = Arc::new(Identity::default());
        let processes =
            Processes::new(Exits::default(), Arc::clone(&identity), ("/".into(), None), tasks.clone());
        let options = Listen {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            pod: POD.to_owned(),
            key: BASE64.encode(key.public_key().as_ref()),
        };
        let files = Files::open(Path::new("/"), tasks.clone()).expect("threads");
        let services = Services::new(Arc::clone(&identity), processes, files);
        let address = open(options, services, &tasks).await.expect("listens");
        let stream = TcpStream::connect(address).await.expect("connects");
        // What a test leaves unread holds up nothing on its own side.
        let (client, connection) = Builder::new(Owned(tasks.clone()))
            .initial_stream_window_size(64 << 10)
            .initial_connection_window_size(16 << 20)
            .handshake(TokioIo::new(stream))
            .await
            .expect("speaks HTTP/2");
        tasks.spawn(async move |stop| drop(stop.run_until_cancelled(connection).await));
        Self { client, key, identity, nonce: 0, _tasks: tasks }
    }

    fn message(&mut self, wrong: &Wrong, path: &'static str, body: &'static str) -> Request<Inward> {
        self.signed(wrong, &Method::POST, path, &[], body)
    }

    fn signed(
        &mut self,
        wrong: &Wrong,
        method: &Method,
        path: &'static str,
        more: &[(&'static str, &'static str)],
        body: &'static str,
    ) -> Request<Inward> {
        self.nonce += 1;
        let now = i64::try_from(clock::unix_seconds(clock::now())).expect("fits");
        let digest = hex(digest(&SHA256, body.as_bytes()).as_ref());
        let envelope = Envelope {
            pod: wrong.pod.unwrap_or(POD).to_owned(),
            sandbox: wrong.sandbox.unwrap_or(SANDBOX).to_owned(),
            at: u64::try_from(now - wrong.age).expect("fits"),
            nonce: hex(&[wrong.nonce.unwrap_or(self.nonce); 16]),
            body: (!wrong.is_streamed).then_some(digest),
        };
        let headers = [&[("content-type", "application/json")][..], more].concat();
        let named = headers.iter().map(|(name, value)| (*name, value.as_bytes()));
        let signed = envelope.signed(method.as_str(), path, named);
        let signature = wrong.key.as_ref().unwrap_or(&self.key).sign(&signed);
        let mut request = Request::new(full(body));
        *request.method_mut() = method.clone();
        *request.uri_mut() = format!("http://sandbox{path}").parse().expect("a URI");
        let header = envelope.header(signature.as_ref()).parse().expect("a header");
        request.headers_mut().insert(HEADER, header);
        for (name, value) in headers {
            request.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        request
    }

    /// The output of a command that is started under this name, or has been.
    async fn started(&mut self, name: &'static str, process: &str) -> Incoming {
        let body = enveloped(&format!(r#"{{"process":{process},"stdin":false}}"#));
        let named = [(execs::EXEC, name)];
        let request = self.signed(&Wrong::default(), &Method::POST, START, &named, body);
        self.output(request).await
    }

    async fn output(&self, request: Request<Inward>) -> Incoming {
        let response = self.client.clone().send_request(request).await.expect("answers");
        assert_eq!(response.status(), StatusCode::OK);
        response.into_body()
    }

    async fn identify(&mut self) {
        let request = self.message(&Wrong::default(), IDENTIFY, identity());
        assert_eq!(self.send(request).await.0, StatusCode::OK);
    }

    async fn send(&self, request: Request<Inward>) -> (StatusCode, String) {
        let response = self.client.clone().send_request(request).await.expect("answers");
        let status = response.status();
        let body = response.into_body().collect().await.expect("whole").to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    /// The refusal of an identity that is wrong in this way.
    async fn refusal(&mut self, wrong: Wrong) -> String {
        let request = self.message(&wrong, IDENTIFY, identity());
        let (status, body) = self.send(request).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{body}");
        body
    }
}

fn full(body: &'static str) -> Inward {
    Full::new(Bytes::from_static(body.as_bytes())).map_err(|never| match never {}).boxed_unsync()
}

/// A message of a stream: its flags, its length, and it.
fn enveloped(json: &str) -> &'static str {
    let length = u8::try_from(json.len()).expect("is short");
    String::from_utf8([&[0, 0, 0, 0, length][..], json.as_bytes()].concat()).expect("is shorter").leak()
}

/// Reads until `is_enough` of what came; all of that.
async fn read(mut body: Incoming, is_enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut all = Vec::new();
    let reading = async {
        while !is_enough(&all) {
            let frame = body.frame().await.expect("there is more").expect("is not cut off");
            all.extend_from_slice(frame.data_ref().map_or(&[][..], |bytes| bytes));
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("comes in time");
    all
}

const fn identity() -> &'static str {
    r#"{"sandbox_id":"sandbox-abcdefghijkl","conversation_id":"c1","token":"t","env":{},"gateway":{"address":"10.0.0.1:8081"}}"#
}

#[tokio::test]
async fn what_the_orchestrator_signed_is_served() {
    let mut pod = Pod::start().await;
    let request = pod.message(&Wrong::default(), IDENTIFY, identity());
    let (status, body) = pod.send(request).await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, "{}"));
    assert_eq!(pod.identity.gateway().expect("is known").address.to_string(), "10.0.0.1:8081");
    let request = pod.message(&Wrong::default(), "/process.Process/List", "{}");
    assert_eq!(pod.send(request).await.0, StatusCode::OK);
}

#[tokio::test]
async fn nothing_is_served_without_a_signature() {
    let pod = Pod::start().await;
    let tried = [("POST", IDENTIFY), ("POST", START), ("GET", "/health"), ("GET", "/shim/exec/a")];
    for (method, path) in tried {
        let request = Request::builder().method(method).uri(format!("http://sandbox{path}"));
        let (status, body) = pod.send(request.body(full(identity())).expect("a request")).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{method} {path}: {body}");
    }
    assert!(pod.identity.bearer().is_none());
}

#[tokio::test]
async fn a_signed_start_is_kept_to_be_followed_and_is_not_started_again() {
    // What it prints, as the stream has it.
    const SAID: &str = "c2FpZAo=";
    let mut pod = Pod::start().await;
    pod.identify().await;
    let process = r#"{"cmd":"/bin/echo","args":["said"]}"#;
    let until_said = async |body: Incoming| {
        let all = read(body, |all| String::from_utf8_lossy(all).contains(SAID)).await;
        let all = String::from_utf8_lossy(&all).into_owned();
        all.split_once(SAID).map(|(before, _)| before.to_owned()).expect("was said")
    };
    let first = until_said(pod.started("a", process).await).await;
    assert!(first.contains("pid"), "{first}");
    let follow = pod.signed(&Wrong::default(), &Method::GET, "/shim/exec/a", &[], "");
    assert_eq!(until_said(pod.output(follow).await).await, first);
    assert_eq!(until_said(pod.started("a", process).await).await, first, "the same process");
    let unknown = pod.signed(&Wrong::default(), &Method::GET, "/shim/exec/b", &[], "");
    assert_eq!(pod.send(unknown).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn output_that_nobody_reads_holds_up_no_other() {
    let mut pod = Pod::start().await;
    pod.identify().await;
    let process = r#"{"cmd":"/usr/bin/head","args":["-c","6000000","/dev/zero"]}"#;
    let mut unread = Vec::new();
    for name in ["a", "b", "c", "d"] {
        unread.push(pod.started(name, process).await);
    }
    let output = pod.started("e", process).await;
    let all = read(output, |all| all.len() >= 8_000_000).await;
    assert!(all.len() >= 8_000_000, "all of it, in base64");
    drop(unread);
}

#[tokio::test]
async fn each_way_of_being_wrong_is_refused_and_leaves_no_identity() {
    let mut pod = Pod::start().await;
    let other = Ed25519KeyPair::generate().expect("a key");
    let refused = pod.refusal(Wrong { key: Some(other), ..Wrong::default() }).await;
    assert!(refused.contains("signature is not good"), "{refused}");
    let refused = pod.refusal(Wrong { pod: Some("another-pod"), ..Wrong::default() }).await;
    assert!(refused.contains("another pod"), "{refused}");
    for age in [40, -40] {
        let refused = pod.refusal(Wrong { age, ..Wrong::default() }).await;
        assert!(refused.contains("clocks"), "{refused}");
    }
    let refused = pod.refusal(Wrong { is_streamed: true, ..Wrong::default() }).await;
    assert!(refused.contains("does not cover the body"), "{refused}");
    assert!(pod.identity.bearer().is_none(), "nothing of that was taken");
}

#[tokio::test]
async fn a_message_is_heard_once() {
    let mut pod = Pod::start().await;
    let once = Wrong { nonce: Some(9), ..Wrong::default() };
    let request = pod.message(&once, "/process.Process/List", "{}");
    assert_eq!(pod.send(request).await.0, StatusCode::OK);
    let request = pod.message(&once, "/process.Process/List", "{}");
    let (status, body) = pod.send(request).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(body.contains("heard before"), "{body}");
}

#[tokio::test]
async fn a_body_path_or_header_that_was_changed_on_the_way_is_refused() {
    let mut pod = Pod::start().await;
    let mut changed = pod.message(&Wrong::default(), IDENTIFY, identity());
    *changed.body_mut() = full("{}");
    let (status, body) = pod.send(changed).await;
    assert!(status == StatusCode::FORBIDDEN && body.contains("not what was signed"), "{body}");

    let mut changed = pod.message(&Wrong::default(), "/process.Process/List", "{}");
    *changed.uri_mut() = "http://sandbox/process.Process/Start".parse().expect("a URI");
    assert_eq!(pod.send(changed).await.0, StatusCode::FORBIDDEN);

    let mut changed = pod.message(&Wrong::default(), "/process.Process/List", "{}");
    changed.headers_mut().insert("connect-timeout-ms", "1".parse().expect("a header"));
    assert_eq!(pod.send(changed).await.0, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_pod_that_is_one_sandbox_does_not_listen_as_another() {
    let mut pod = Pod::start().await;
    let request = pod.message(&Wrong::default(), IDENTIFY, identity());
    assert_eq!(pod.send(request).await.0, StatusCode::OK);
    let refused = pod.refusal(Wrong { sandbox: Some("sandbox-bbbbbbbbbbbb"), ..Wrong::default() }).await;
    assert!(refused.contains("another sandbox"), "{refused}");
}

#[test]
fn nonces_are_forgotten_when_no_clock_takes_them_for_fresh_and_never_before() {
    let mut heard = Heard::default();
    let envelope = |nonce: u32| Envelope {
        pod: POD.into(),
        sandbox: SANDBOX.into(),
        at: 1000,
        nonce: format!("{nonce:032x}"),
        body: None,
    };
    assert!(heard.is_new(&envelope(1), 1000));
    assert!(!heard.is_new(&envelope(1), 1060), "30 s ahead and 30 s late");
    assert!(heard.is_new(&envelope(1), 1061));
    let mut full = Heard::default();
    for nonce in 0..u32::try_from(NONCES).expect("fits") {
        assert!(full.is_new(&envelope(nonce), 1000));
    }
    assert!(!full.is_new(&envelope(u32::MAX), 1000), "a flood is refused, not forgotten");
    assert!(full.is_new(&envelope(u32::MAX), 1061));
}

#[tokio::test]
async fn whoever_does_not_hear_its_own_pod_leaves_its_port_to_nobody() {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.is_err() {
        return;
    }
    let all = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let hears = bind(all, true).await.expect("listens");
    let port = hears.local_addr().expect("has an address").port();
    let ours = TcpListener::bind((Ipv6Addr::LOCALHOST, port)).await;
    assert!(ours.is_ok(), "the control: of one family the other is free");
    let held = bind(all, false).await.expect("listens");
    let port = held.local_addr().expect("has an address").port();
    for address in [IpAddr::from(Ipv6Addr::LOCALHOST), Ipv4Addr::LOCALHOST.into()] {
        assert!(TcpListener::bind((address, port)).await.is_err(), "{address}");
        assert!(TcpStream::connect((address, port)).await.is_ok(), "{address}");
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_also_where_ipv6_is_kept_to_itself() {
    // Made as the kernel makes each with `net.ipv6.bindv6only`.
    let alone = || {
        let socket = TcpSocket::new_v6().ok()?;
        sockopt::set_ipv6_v6only(&socket, true).ok()?;
        Some(socket)
    };
    let (Some(control), Some(tried), Some(held)) = (alone(), alone(), alone()) else { return };
    let other = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.expect("listens");
    let port = other.local_addr().expect("has an address").port();
    control.bind((Ipv6Addr::UNSPECIFIED, port).into()).expect("the control: IPv6 has it free");
    drop(control);
    let refused = in_both(tried, port).expect_err("IPv4 has not");
    assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
    assert_eq!(refused.to_string(), format!("something else in this pod listens on port {port}"));
    let held = in_both(held, 0).expect("one of both");
    let port = held.local_addr().expect("has an address").port();
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok());
}
