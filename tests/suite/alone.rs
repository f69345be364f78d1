// SPDX-License-Identifier: Apache-2.0
//! `postern-gateway --config DIR`: the example's folder, filter and policies, with no orchestrator.

use crate::running::{Answer, Backend, configured, follow, http, programs, wait_for};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

const SECRET: &str = "0123456789abcdef0123456789abcdef-of-an-issuer";
const ISSUER: [(&str, &str); 3] = [
    ("POSTERN_GATEWAY_TOKENS_ISSUER", "https://login.example"),
    ("POSTERN_GATEWAY_TOKENS_AUDIENCE", "agents"),
    ("POSTERN_GATEWAY_TOKENS_ALGORITHM", "HS256"),
];

struct Gateway {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn command(folder: &Path) -> Command {
    let mut command = Command::new(programs().join("postern-gateway"));
    command
        .env_clear()
        .env("POSTERN_LOG_FORMAT", "json")
        .current_dir(folder)
        .args(["--config", "config", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

impl Gateway {
    fn start(folder: &Path) -> Self {
        let mut child = command(folder)
            .envs(ISSUER)
            .env("POSTERN_GATEWAY_TOKENS_SECRET", SECRET)
            .stderr(Stdio::piped())
            .spawn()
            .expect("postern-gateway starts");
        let log = Arc::new(Mutex::new(String::new()));
        follow(child.stderr.take().expect("is piped"), &log);
        Self { child, log }
    }

    fn logged(&self, field: &str) -> String {
        wait_for("postern-gateway", || {
            let log = self.log.lock().expect("no panic").clone();
            let line = log.lines().find(|line| line.contains("stands alone"))?;
            let line: Value = serde_json::from_str(line).expect("is JSON");
            Some(line[field].as_str().expect(field).to_owned())
        })
    }

    fn call(&self, method: &str, path: &str, token: &str, body: Option<&Value>) -> Answer {
        let (url, authorization) = (format!("http://{}", self.logged("listen")), format!("Bearer {token}"));
        http(&url, method, path, &[("Authorization", authorization.as_str())], body)
    }
}

/// A token, signed by other hands than ours.
fn token(user: &str, operations: &[&str]) -> String {
    let script = "import base64, hashlib, hmac, json, sys, time\n\
        b = lambda raw: base64.urlsafe_b64encode(raw).rstrip(b'=')\n\
        claims = {'iss': 'https://login.example', 'aud': 'agents', 'sub': sys.argv[2], 'conversation_id': 'c1',\n\
        'exp': int(time.time()) + 600, 'operations': json.loads(sys.argv[3])}\n\
        text = b(b'{\"alg\":\"HS256\"}') + b'.' + b(json.dumps(claims).encode())\n\
        print((text + b'.' + b(hmac.new(sys.argv[1].encode(), text, hashlib.sha256).digest())).decode())\n";
    let operations = json!(operations).to_string();
    let made = Command::new("python3").args(["-I", "-c", script, SECRET, user, &operations]).output();
    let made = made.expect("python3 runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    String::from_utf8_lossy(&made.stdout).trim().to_owned()
}

#[test]
fn the_examples_folder_is_served_with_an_issuers_tokens() {
    let backend = Backend::start();
    let folder = configured(&backend);
    let gateway = Gateway::start(folder.path());
    let alice = token("alice", &["support-desk/read", "support-desk/write"]);
    let answer = gateway.call("GET", "/support-desk/orders", &alice, None);
    assert_eq!(answer.status, 200, "{}", answer.text);
    let refund = |reason: &str| json!({ "order_id": "ord-1001", "amount": 5, "reason": reason });
    let card = refund("card 4111 1111 1111 1111");
    let reached = backend.reached();
    let answer = gateway.call("POST", "/support-desk/refunds", &alice, Some(&card));
    assert_eq!(answer.code(), "filter-rejected", "{} {}", answer.status, answer.text);
    let reader = token("alice", &["support-desk/read"]);
    let answer = gateway.call("POST", "/support-desk/refunds", &reader, Some(&refund("late")));
    assert_eq!((answer.status, answer.code().as_str()), (403, "policy-denied"), "the token may only read");
    assert_eq!(backend.reached(), reached, "nothing of it reached the backend");
    let admin = format!("http://{}", gateway.logged("admin"));
    let ready = http(&admin, "GET", "/readyz", &[], None);
    assert!(ready.status == 200 && ready.text.contains("binding: none"), "{}", ready.text);
}

#[test]
fn whose_tokens_to_believe_must_be_said() {
    let backend = Backend::start();
    let folder = configured(&backend);
    let told = |settings: &[(&str, &str)]| {
        let output = command(folder.path()).envs(settings.iter().copied()).output().expect("runs");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(told(&[]).contains("POSTERN_GATEWAY_TOKENS_ISSUER"));
    assert!(told(&ISSUER).contains("POSTERN_GATEWAY_TOKENS_SECRET_FILE"));
    let short = [ISSUER.as_slice(), &[("POSTERN_GATEWAY_TOKENS_SECRET", "short")]].concat();
    assert!(told(&short).contains("32"), "{}", told(&short));
    let both = [ISSUER.as_slice(), &[("POSTERN_ORCHESTRATOR", "127.0.0.1:1")]].concat();
    assert!(told(&both).contains("stands alone"), "{}", told(&both));
}
