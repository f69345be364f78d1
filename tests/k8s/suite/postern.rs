// SPDX-License-Identifier: Apache-2.0
//! Orchestrator, gateway and a backend beside the cluster, each in a network of its own with the
//! address and the labels that its pods would have; the orchestrator with the rights of its service
//! account and no others.

use crate::cluster::{Cluster, kubeconfig, pem};
use crate::manifests;
use crate::node::pod::Network;
use crate::parts::{Part, must};
use crate::running::{Answer, copy_folder, http, postern, programs, project, try_http, wait_for};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// The parts that are no pods, as the node knows them.
const GATEWAY: &str = "gateway";
const ORCHESTRATOR: &str = "orchestrator";
const SECOND: &str = "second";
/// Who the orchestrator is for the API server, and its token in this test.
pub(crate) const ACCOUNT: &str = "agent-sandbox-kit-orchestrator";
pub(crate) const TOKEN: &str = "orchestrator-token-of-this-test";
/// The namespace of everything of ours but sandboxes.
pub(crate) const RELEASE: &str = "postern";
pub(crate) const GATEWAY_ADDRESS: &str = "10.77.0.2";
pub(crate) const ORCHESTRATOR_ADDRESS: &str = "10.77.0.3";
/// Of the second replica, where there is one.
pub(crate) const SECOND_ADDRESS: &str = "10.77.0.5";
/// The backend is within the gateway's own network: nobody else reaches it.
const BACKEND: &str = "127.0.0.1:9000";
const SIGNING_KEY: &str = "0123456789abcdef0123456789abcdef-a-test";

/// The orchestrator, as the API server calls it.
pub(crate) fn user() -> String {
    format!("system:serviceaccount:{RELEASE}:{ACCOUNT}")
}

/// The line of the API server's token file for the orchestrator's account.
pub(crate) fn token_line() -> String {
    let groups = format!("system:serviceaccounts,system:serviceaccounts:{RELEASE},system:authenticated");
    format!("{TOKEN},{},orchestrator,\"{groups}\"\n", user())
}

/// Everything of ours, against one namespace of sandboxes.
#[derive(Debug)]
pub(crate) struct Postern<'a> {
    pub(crate) cluster: &'a Cluster,
    /// The namespace of sandboxes.
    pub(crate) namespace: String,
    parts: Vec<Part>,
    orchestrator: Option<Part>,
    second: Option<Part>,
    gateway: Network,
    own: Network,
    /// Of the second replica, and the database of both.
    shared: Option<(Network, String)>,
    seed: String,
    authority: PathBuf,
    /// Of orchestrators and gateway, besides those that all have.
    settings: Vec<(&'static str, &'static str)>,
    home: Arc<TempDir>,
}

/// What a case wants to be different.
struct Wanted {
    /// Of two replicas.
    database: Option<String>,
    settings: Vec<(&'static str, &'static str)>,
    /// Pods that are kept ready.
    warm: u32,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { database: None, settings: Vec::new(), warm: 3 }
    }
}

impl Drop for Postern<'_> {
    fn drop(&mut self) {
        for place in [GATEWAY, ORCHESTRATOR, SECOND] {
            self.cluster.node.remove_neighbour(place);
        }
    }
}

impl<'a> Postern<'a> {
    /// Makes the namespace with its objects, and starts everything.
    pub(crate) async fn start(cluster: &'a Cluster, name: &str) -> Self {
        Self::start_on(cluster, name, Wanted::default()).await
    }

    /// The same with settings of the case's own.
    pub(crate) async fn start_with(
        cluster: &'a Cluster,
        name: &str,
        settings: Vec<(&'static str, &'static str)>,
    ) -> Self {
        Self::start_on(cluster, name, Wanted { settings, ..Wanted::default() }).await
    }

    /// The same with two orchestrators on one database.
    pub(crate) async fn start_two(cluster: &'a Cluster, name: &str, database: String) -> Self {
        Self::start_on(cluster, name, Wanted { database: Some(database), ..Wanted::default() }).await
    }

    /// The same without a pod that really runs.
    pub(crate) async fn start_bench(cluster: &'a Cluster, name: &str, database: String) -> Self {
        let database = Some(database);
        Self::start_on(cluster, name, Wanted { database, warm: 0, ..Wanted::default() }).await
    }

    async fn start_on(cluster: &'a Cluster, name: &str, wanted: Wanted) -> Self {
        let Wanted { database, settings, warm } = wanted;
        let namespace = format!("sandbox-{name}");
        let seed = STANDARD.encode([11; 32]);
        for object in manifests::all(&namespace, &control_key(&seed), warm) {
            cluster.apply(&object, &namespace).await;
        }
        let network = |place: &str, part: &str, address: &str| {
            let address: IpAddr = address.parse().expect("an address");
            cluster.node.add_neighbour(place, RELEASE, &manifests::labels(part), address);
            Network::new(&format!("{name}-{place}"), address)
        };
        let (gateway, own) = (
            network(GATEWAY, GATEWAY, GATEWAY_ADDRESS),
            network(ORCHESTRATOR, ORCHESTRATOR, ORCHESTRATOR_ADDRESS),
        );
        let shared = database.map(|url| (network(SECOND, ORCHESTRATOR, SECOND_ADDRESS), url));
        let home = Arc::new(tempfile::tempdir().expect("a folder"));
        let [authority, certificate, private] = certificates(home.path());
        let (parts, orchestrator, second) = (Vec::new(), None, None);
        let mut postern = Self {
            cluster,
            namespace,
            parts,
            orchestrator,
            second,
            gateway,
            own,
            shared,
            seed,
            authority,
            settings,
            home,
        };
        postern.start_orchestrator();
        if postern.shared.is_some() {
            postern.start_second();
        }
        postern.start_gateway(&certificate, &private);
        postern.configure();
        postern
    }

    /// Starts the orchestrator, on the data that is there.
    pub(crate) fn start_orchestrator(&mut self) {
        self.orchestrator = Some(self.launch(&self.own, ORCHESTRATOR_ADDRESS, "data", "orchestrator"));
    }

    /// Starts the second replica, on the data that is there.
    pub(crate) fn start_second(&mut self) {
        let (network, _) = self.shared.as_ref().expect("there are two");
        self.second = Some(self.launch(network, SECOND_ADDRESS, "second", "second"));
    }

    fn launch(&self, network: &Network, address: &str, data: &str, log: &str) -> Part {
        let mut command = network.command(programs().join("postern-orchestrator"));
        let at = |port: u16| format!("{address}:{port}");
        if let Some((_, url)) = &self.shared {
            let key = STANDARD.encode([12; 32]);
            command.env("DATABASE_URL", url).env("POSTERN_MIGRATE", "auto").env("POSTERN_MASTER_KEY", key);
        }
        let data = self.home.path().join(data);
        command
            .env("POSTERN_RUNTIME", "kubernetes")
            .env("SANDBOX_NAMESPACE", &self.namespace)
            .env("POSTERN_KUBECONFIG", kubeconfig("orchestrator", TOKEN))
            .env("POSTERN_SANDBOX_CONTROL_KEY", &self.seed)
            .env("POSTERN_SANDBOX_GATEWAY", format!("https://{GATEWAY_ADDRESS}:8081"))
            .env("POSTERN_SANDBOX_GATEWAY_CA", &self.authority)
            .env("POSTERN_API_INSECURE_LISTEN", "true")
            .env("POSTERN_FILES_API", at(8083))
            // Both replicas have one store.
            .env("STORAGE_BUCKET", self.home.path().join("objects"))
            .env("TOKEN_SIGNING_KEY", SIGNING_KEY)
            .env("POSTERN_LOG", "info,postern_orchestrator=debug")
            .env("POSTERN_LOG_FORMAT", "json")
            .envs(self.settings.iter().copied())
            .args(["--listen", &at(8080), "--control-listen", &at(8082), "--admin-listen", &at(9090)])
            .arg("--data-dir")
            .arg(&data)
            .current_dir(self.home.path());
        let mut part = Part::start(&format!("{}-{log}", self.namespace), &command);
        let pid = u64::from(part.pid());
        wait_for("postern-orchestrator", || {
            part.must_run();
            let written = fs::read_to_string(data.join("connection.json")).ok()?;
            let written: Value = serde_json::from_str(&written).ok()?;
            (written.get("pid")?.as_u64()? == pid).then_some(())
        });
        part
    }

    /// Kills the second replica as a crash would.
    pub(crate) fn crash_second(&mut self) {
        if let Some(part) = self.second.take() {
            part.crash();
        }
    }

    /// Kills the orchestrator as a crash would.
    pub(crate) fn crash_orchestrator(&mut self) {
        if let Some(part) = self.orchestrator.take() {
            part.crash();
        }
    }

    fn start_gateway(&mut self, certificate: &Path, private: &Path) {
        let made = self.told(&["gateways", "add", "edge"]);
        let credential = self.home.path().join("credential");
        fs::write(&credential, made["credential"].as_str().expect("a credential")).expect("writes");
        fs::set_permissions(&credential, fs::Permissions::from_mode(0o600)).expect("is ours");
        let mut backend = self.gateway.command("python3");
        backend.arg(project().join("examples/support-desk/backend.py")).args(["--port", "9000"]);
        self.parts.push(Part::start(&format!("{}-backend", self.namespace), &backend));
        let orchestrators = |port: u16| match &self.shared {
            Some(_) => format!("{ORCHESTRATOR_ADDRESS}:{port},{SECOND_ADDRESS}:{port}"),
            None => format!("{ORCHESTRATOR_ADDRESS}:{port}"),
        };
        let mut gateway = self.gateway.command(programs().join("postern-gateway"));
        gateway
            .env("TOKEN_SIGNING_KEY", SIGNING_KEY)
            .env("POSTERN_GATEWAY_CREDENTIAL_FILE", credential)
            .env("POSTERN_ORCHESTRATOR", orchestrators(8082))
            .env("POSTERN_FILES_API", orchestrators(8083))
            .envs(self.settings.iter().copied())
            .env("POSTERN_UPSTREAMS_ALLOW", BACKEND)
            .env("POSTERN_GATEWAY_TLS_CERT", certificate)
            .env("POSTERN_GATEWAY_TLS_KEY", private)
            .args(["--listen", &format!("{GATEWAY_ADDRESS}:8081"), "--admin-listen", "127.0.0.1:9091"])
            .arg("--data-dir")
            .arg(self.home.path().join("edge"))
            .current_dir(self.home.path());
        let mut part = Part::start(&format!("{}-gateway", self.namespace), &gateway);
        wait_for("postern-gateway", || {
            part.must_run();
            part.log().contains("postern-gateway is up").then_some(())
        });
        self.parts.push(part);
    }

    fn configure(&self) {
        let config = self.home.path().join("config");
        copy_folder(&project().join("examples/support-desk/config"), &config);
        let template =
            "operations = [\"support-desk/read\"]\nttl = \"1h\"\n\n[env]\nDESK_LANGUAGE = \"en\"\n";
        fs::write(config.join("templates/default.toml"), template).expect("writes");
        self.told(&["apply", config.to_str().expect("is text")]);
    }

    /// Where the orchestrator keeps its data, and says where it is.
    pub(crate) fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// The public half of the key that orders are signed with.
    pub(crate) fn control_key(&self) -> String {
        control_key(&self.seed)
    }

    /// Makes tenant's templates that each name the cluster's of their own name.
    pub(crate) fn add_templates(&self, names: &[&str]) {
        for name in names {
            let template = json!({ "operations": ["support-desk/read"], "kubernetes": name });
            let put = self.call("PUT", &format!("/templates/{name}"), Some(&template));
            assert!(matches!(put.status, 200 | 201), "{put:?}");
        }
    }

    /// What the gateway answers to a request from this address with this token: status and code.
    pub(crate) fn ask_gateway(&self, from: IpAddr, token: &str) -> String {
        answer_of(
            &self
                .cluster
                .node
                .in_network(from, &self.asking(token).iter().map(String::as_str).collect::<Vec<_>>()),
        )
    }

    /// The same from where the gateway is.
    pub(crate) fn ask_gateway_from_own_place(&self, token: &str) -> String {
        let asking = self.asking(token);
        let (program, arguments) = asking.split_first().expect("a program");
        answer_of(&self.gateway.command(program).args(arguments).output().expect("starts"))
    }

    fn asking(&self, token: &str) -> [String; 7] {
        let script = "import json, ssl, sys, urllib.error, urllib.request as u\n\
            c = ssl.create_default_context(cafile=sys.argv[1])\n\
            r = u.Request(sys.argv[2], headers={'Authorization': 'Bearer ' + sys.argv[3]})\n\
            try: print(u.urlopen(r, context=c, timeout=20).status)\n\
            except urllib.error.HTTPError as e: print(e.code, json.load(e)['code'])\n";
        let url = format!("https://{GATEWAY_ADDRESS}:8081/support-desk/orders");
        let authority = self.authority.to_str().expect("is text");
        ["python3", "-I", "-c", script, authority, &url, token].map(str::to_owned)
    }

    /// What a pod says to an order that nobody signed, such as `49983/process.Process/Start`, from the
    /// orchestrator's own place.
    pub(crate) fn unsigned_order(&self, pod: IpAddr, order: &str) -> String {
        let url = format!("http://{pod}:{order}");
        let mut curl = self.own.command("curl");
        let ask =
            ["--silent", "--show-error", "--http2-prior-knowledge", "--max-time", "20", "--data", "{}", &url];
        let output = curl.args(ask).output().expect("curl starts");
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat()
    }

    /// Has somebody take orders at all these addresses, in the network of each orchestrator.
    pub(crate) fn answer_for(&self, addresses: &str) -> Vec<Part> {
        let networks = std::iter::once(&self.own).chain(self.shared.iter().map(|(network, _)| network));
        let answering = networks.map(|network| {
            must("ip", &["-netns", network.name(), "route", "add", "local", addresses, "dev", "lo"]);
            let mut command = network.command(std::env::current_exe().expect("knows where it is"));
            command.arg(crate::run::ANSWERER);
            Part::start(&format!("answerer-{}", network.name()), &command)
        });
        answering.collect()
    }

    /// How long the cluster took for each sandbox, by the orchestrator's log.
    pub(crate) fn times_of_cluster(&self) -> BTreeMap<String, Duration> {
        let text = self.log();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines
            .filter_map(|line| {
                let micros = Duration::from_micros(line["cluster_micros"].as_u64()?);
                Some((line["sandbox"].as_str()?.to_owned(), micros))
            })
            .collect()
    }

    /// The orchestrator's resident memory.
    pub(crate) fn memory(&self) -> u64 {
        let pid = self.orchestrator.as_ref().map(Part::pid).expect("runs");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("is there");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("is told");
        line.split_whitespace().nth(1).and_then(|it| it.parse::<u64>().ok()).expect("a number") * 1024
    }

    /// What the orchestrator has written.
    pub(crate) fn log(&self) -> String {
        self.orchestrator.as_ref().map(Part::log).unwrap_or_default()
    }

    /// Runs `postern` against it.
    pub(crate) fn postern(&self, arguments: &[&str]) -> Output {
        postern(self.home.path()).arg("--json").args(arguments).output().expect("postern runs")
    }

    /// Runs `postern` against it; what it prints is JSON.
    pub(crate) fn told(&self, arguments: &[&str]) -> Value {
        let output = self.postern(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}\n{}", self.log());
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// A call of the REST API with the admin's key.
    pub(crate) fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        self.call_at(ORCHESTRATOR_ADDRESS, method, path, body)
    }

    /// The same of the replica at this address.
    pub(crate) fn call_at(&self, address: &str, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let (url, authorization) = self.caller_at(address);
        http(&url, method, path, &[("Authorization", &authorization)], body)
    }

    /// What a caller needs: where it is, and what to say in `Authorization`.
    pub(crate) fn caller(&self) -> (String, String) {
        self.caller_at(ORCHESTRATOR_ADDRESS)
    }

    /// The same for the replica at this address: a key is every replica's.
    pub(crate) fn caller_at(&self, address: &str) -> (String, String) {
        let key = fs::read_to_string(self.home.path().join("data/api-key")).expect("is there");
        (format!("http://{address}:8080"), format!("Bearer {}", key.trim()))
    }

    /// A sandbox for this conversation, running.
    pub(crate) fn sandbox(&self, user: &str, conversation: &str) -> Value {
        let wanted = json!({ "user_id": user, "conversation_id": conversation });
        let answer = self.call("POST", "/sandbox?wait=running", Some(&wanted));
        assert!(matches!(answer.status, 200 | 201), "{answer:?}\n{}", self.log());
        answer.json()
    }

    /// What a command in a sandbox prints.
    pub(crate) fn exec(&self, sandbox: &str, command: &[&str]) -> String {
        let all = [&["sandbox", "exec", sandbox, "--"], command].concat();
        let mut plain = postern(self.home.path());
        let output = plain.args(all).output().expect("postern runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {errors}\n{}", self.log());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What the agent gets for a request to the backend.
    pub(crate) fn agent(&self, sandbox: &str, arguments: &[&str]) -> Value {
        let script = fs::read_to_string(project().join("examples/support-desk/agent.py")).expect("reads");
        let mut command = vec!["python3", "-I", "-c", &script];
        command.extend(arguments);
        serde_json::from_str(&self.exec(sandbox, &command)).expect("is JSON")
    }
}

fn answer_of(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A create call for a thread of its own; its answer, if one came.
pub(crate) fn create_call(
    caller: (String, String),
    conversation: &str,
) -> impl FnOnce() -> Option<Answer> + Send + 'static {
    let wanted = json!({ "user_id": "alice", "conversation_id": conversation });
    move || {
        let (url, authorization) = caller;
        let headers = [("Authorization", authorization.as_str())];
        try_http(&url, "POST", "/sandbox?wait=running", &headers, Some(&wanted)).ok()
    }
}

/// The same for a destroy.
pub(crate) fn destroy_call(
    caller: (String, String),
    sandbox: &str,
) -> impl FnOnce() -> Option<Answer> + Send + 'static {
    let path = format!("/sandbox/{sandbox}");
    move || {
        let (url, authorization) = caller;
        try_http(&url, "DELETE", &path, &[("Authorization", authorization.as_str())], None).ok()
    }
}

/// An authority, and a certificate of its for the gateway's address, as files.
fn certificates(folder: &Path) -> [PathBuf; 3] {
    let mut root = CertificateParams::new(Vec::new()).expect("no names");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_key = KeyPair::generate().expect("a key");
    let authority = root.self_signed(&root_key).expect("signs");
    let issuer = Issuer::new(root, root_key);
    let mut params = CertificateParams::new(vec![GATEWAY_ADDRESS.to_owned()]).expect("names");
    params.distinguished_name.push(DnType::CommonName, "the gateway");
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, &issuer).expect("signs");
    let files = [
        ("gateway-ca.crt", pem("CERTIFICATE", authority.der())),
        ("gateway.crt", pem("CERTIFICATE", certificate.der())),
        ("gateway.key", pem("PRIVATE KEY", &key.serialize_der())),
    ];
    files.map(|(name, text)| {
        let path = folder.join(name);
        fs::write(&path, text).expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("is ours");
        path
    })
}

/// The public half of the key that orders are signed with, as an operator learns it.
fn control_key(seed: &str) -> String {
    let output = Command::new(programs().join("postern-orchestrator"))
        .arg("--print-control-key")
        .env_clear()
        .env("POSTERN_SANDBOX_CONTROL_KEY", seed)
        .stderr(Stdio::inherit())
        .output()
        .expect("postern-orchestrator starts");
    String::from_utf8(output.stdout).expect("is text").trim().to_owned()
}
