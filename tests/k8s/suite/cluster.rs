// SPDX-License-Identifier: Apache-2.0
//! A control plane: etcd, API server, controller manager, scheduler, the agent-sandbox controller
//! with its CRDs, and one node of ours.

use crate::node::Node;
use crate::parts::{Part, cache, folder, must, program};
use crate::surroundings::Surroundings;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client, Config};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData as _};
use serde_json::{Value, json};
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// The node's address on the network of pods; everything of the control plane is here too.
pub(crate) const NODE_ADDRESS: &str = "10.77.0.1";
/// The API server's `--service-cluster-ip-range`.
const SERVICES: &str = "10.96.0.0/16";
const API: &str = "https://10.77.0.1:6443";
pub(crate) const ADMIN: &str = "admin-token-of-this-test";
/// Controllers without which claims, quotas, services and namespaces do not come to their end. Not
/// the node's: leases of a node that is not one would be missed.
const CONTROLLERS: &str = "garbage-collector-controller,namespace-controller,serviceaccount-controller,\
    resourcequota-controller,endpointslice-controller,root-ca-certificate-publisher-controller";
/// Those that make pods of Deployments and Jobs, and bind claims.
const WORKLOADS: [&str; 6] = [
    "deployment-controller",
    "replicaset-controller",
    "job-controller",
    "persistentvolume-binder-controller",
    "persistentvolumeclaim-protection-controller",
    "persistentvolume-protection-controller",
];
/// How long the control plane may take on a busy machine.
const READY_TIME: Duration = Duration::from_secs(90);

/// Everything that runs. Dropped, it ends: the node first, the database last.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) node: Node,
    _surroundings: Surroundings,
    parts: Vec<Part>,
}

/// Who is signed for the API server, and by whom.
#[derive(Debug)]
struct Files {
    authority: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    accounts_public: PathBuf,
    accounts_private: PathBuf,
    tokens: PathBuf,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Cluster").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Cluster {
    /// The control plane and its database.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter()
    }

    pub(crate) async fn start() -> Self {
        drop(fs::remove_dir_all(folder()));
        fs::create_dir_all(folder()).expect("a folder");
        network();
        let files = Files::write();
        let mut parts = vec![Part::start("etcd", &etcd()), Part::start("apiserver", &apiserver(&files))];
        let config = kubeconfig("admin", ADMIN);
        let client = client(ADMIN).await;
        ready(&client, &mut parts).await;
        apply_crds(&client).await;
        let mut controllers = Command::new(program("kube-controller-manager"));
        controllers
            .arg(format!("--kubeconfig={}", config.display()))
            .arg(format!("--service-account-private-key-file={}", files.accounts_private.display()))
            .arg(format!("--root-ca-file={}", files.authority.display()))
            .arg(format!("--controllers={CONTROLLERS}"))
            .args(["--leader-elect=false", "--secure-port=0", "--bind-address=127.0.0.1"]);
        let mut scheduler = Command::new(program("kube-scheduler"));
        scheduler.arg(format!("--kubeconfig={}", config.display())).args([
            "--leader-elect=false",
            "--secure-port=0",
            "--bind-address=127.0.0.1",
        ]);
        let mut sandboxes = Command::new(program("agent-sandbox-controller"));
        sandboxes.env("KUBECONFIG", &config).args([
            "--extensions",
            "--enable-webhook=false",
            "--leader-elect=false",
            "--metrics-bind-address=127.0.0.1:18080",
            "--health-probe-bind-address=127.0.0.1:18081",
        ]);
        parts.push(Part::start("controller-manager", &controllers));
        parts.push(Part::start("scheduler", &scheduler));
        parts.push(Part::start("agent-sandbox-controller", &sandboxes));
        parts.reverse();
        let node = Node::start(client.clone()).await;
        let surroundings = Surroundings::start(&client, &node).await;
        Self { client, node, _surroundings: surroundings, parts }
    }

    /// Applies an object, wherever it belongs; `namespace` where it names none itself.
    pub(crate) async fn apply(&self, object: &Value, namespace: &str) {
        apply(&self.client, object, namespace).await;
    }

    /// Runs the controllers by which Deployments and Jobs get pods, and claims their volumes, for as long as the part lives. Other
    /// cases look at such objects alone.
    pub(crate) fn run_workloads(&self) -> Part {
        let mut controllers = Command::new(program("kube-controller-manager"));
        controllers.arg(format!("--kubeconfig={}", folder().join("admin.kubeconfig").display())).args([
            &format!("--controllers={}", WORKLOADS.join(",")),
            "--leader-elect=false",
            "--secure-port=0",
            "--bind-address=127.0.0.1",
        ]);
        Part::start("workloads", &controllers)
    }

    /// Has every namespace of sandboxes deleted; the next case need not wait for that.
    pub(crate) async fn clear(&self) {
        let namespaces: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource("v1", "Namespace"));
        for namespace in namespaces.list(&ListParams::default()).await.expect("is told").items {
            let name = namespace.metadata.name.unwrap_or_default();
            if name.starts_with("sandbox-") {
                drop(namespaces.delete(&name, &DeleteParams::default()).await);
            }
        }
    }

    /// An API of some kind.
    pub(crate) fn api(&self, version: &str, kind: &str, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &resource(version, kind))
    }
}

/// Loopback, and a bridge that pods are plugged into.
fn network() {
    must("mount", &["-t", "tmpfs", "tmpfs", "/run"]);
    fs::create_dir_all("/run/netns").expect("a folder of ours");
    must("ip", &["link", "set", "lo", "up"]);
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("this namespace's own");
    must("ip", &["link", "add", "pods0", "type", "bridge"]);
    must("ip", &["address", "add", &format!("{NODE_ADDRESS}/16"), "dev", "pods0"]);
    must("ip", &["link", "set", "pods0", "up"]);
    // Of Services, whose addresses are translated on the way out: without a route there is no way.
    must("ip", &["route", "add", SERVICES, "dev", "pods0"]);
}

impl Files {
    fn write() -> Self {
        let at = |name: &str| folder().join(name);
        let mut root = CertificateParams::new(Vec::new()).expect("no names");
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root_key = KeyPair::generate().expect("a key");
        let authority = root.self_signed(&root_key).expect("signs");
        let issuer = Issuer::new(root, root_key);
        let names = ["localhost", "127.0.0.1", NODE_ADDRESS, "10.96.0.1", "kubernetes.default.svc"];
        let params = CertificateParams::new(names.map(str::to_owned).to_vec()).expect("names");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &issuer).expect("signs");
        let accounts = KeyPair::generate().expect("a key");
        let audit = json!({ "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [
            { "level": "Metadata", "omitStages": ["RequestReceived"], "users": [crate::postern::user()],
              "verbs": ["create", "update", "patch", "delete", "deletecollection"] },
            { "level": "None" },
        ] });
        let tokens = format!("{ADMIN},admin,admin,\"system:masters\"\n{}", crate::postern::token_line());
        let written = [
            ("ca.crt", pem("CERTIFICATE", authority.der())),
            ("server.crt", pem("CERTIFICATE", certificate.der())),
            ("server.key", pem("PRIVATE KEY", &key.serialize_der())),
            ("accounts.pub", pem("PUBLIC KEY", &accounts.subject_public_key_info())),
            ("accounts.key", pem("PRIVATE KEY", &accounts.serialize_der())),
            ("tokens.csv", tokens),
            ("audit.yaml", audit.to_string()),
        ];
        for (name, text) in written {
            fs::write(at(name), text).expect("writes");
        }
        Self {
            authority: at("ca.crt"),
            certificate: at("server.crt"),
            key: at("server.key"),
            accounts_public: at("accounts.pub"),
            accounts_private: at("accounts.key"),
            tokens: at("tokens.csv"),
        }
    }
}

/// Bytes as the text between lines that say what they are.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn etcd() -> Command {
    let mut etcd = Command::new(program("etcd"));
    etcd.arg("--data-dir").arg(folder().join("etcd")).args([
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=default=http://127.0.0.1:2380",
        // It is gone with the test; nothing of it has to survive a power cut.
        "--unsafe-no-fsync",
        // The API server asks for it, or its watch caches wait.
        "--watch-progress-notify-interval=5s",
    ]);
    etcd
}

fn apiserver(files: &Files) -> Command {
    let mut apiserver = Command::new(program("kube-apiserver"));
    let path = |name: &str, path: &PathBuf| format!("--{name}={}", path.display());
    apiserver
        .args([
            "--etcd-servers=http://127.0.0.1:2379",
            "--bind-address=0.0.0.0",
            "--secure-port=6443",
            "--authorization-mode=Node,RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--allow-privileged=true",
            "--enable-priority-and-fairness=false",
        ])
        .arg(format!("--service-cluster-ip-range={SERVICES}"))
        .arg(format!("--advertise-address={NODE_ADDRESS}"))
        .arg(path("audit-policy-file", &folder().join("audit.yaml")))
        .arg(path("audit-log-path", &folder().join("audit.log")))
        .arg(path("cert-dir", &folder()))
        .arg(path("tls-cert-file", &files.certificate))
        .arg(path("tls-private-key-file", &files.key))
        .arg(path("client-ca-file", &files.authority))
        .arg(path("token-auth-file", &files.tokens))
        .arg(path("service-account-key-file", &files.accounts_public))
        .arg(path("service-account-signing-key-file", &files.accounts_private));
    apiserver
}

/// A kubeconfig for whoever has this token.
pub(crate) fn kubeconfig(name: &str, token: &str) -> PathBuf {
    let path = folder().join(format!("{name}.kubeconfig"));
    let text = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "test", "cluster": {
            "server": API, "certificate-authority": folder().join("ca.crt"),
        } }],
        "users": [{ "name": name, "user": { "token": token } }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": name } }],
        "current-context": "test",
    });
    fs::write(&path, text.to_string()).expect("writes");
    path
}

/// A client for whoever has this token.
pub(crate) async fn client(token: &str) -> Client {
    let read = kube::config::Kubeconfig::read_from(kubeconfig("client", token)).expect("reads");
    let config = Config::from_custom_kubeconfig(read, &kube::config::KubeConfigOptions::default()).await;
    Client::try_from(config.expect("is one")).expect("a client")
}

async fn ready(client: &Client, parts: &mut [Part]) {
    let deadline = tokio::time::Instant::now() + READY_TIME;
    loop {
        parts.iter_mut().for_each(Part::must_run);
        let request = http::Request::get("/readyz").body(Vec::new()).expect("a request");
        if client.request_text(request).await.is_ok_and(|text| text == "ok") {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "no API server: {:?}", parts.last().map(Part::log));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The controller's own CRDs, without the conversion by a webhook that is not in this cluster and
/// the version that needs it.
async fn apply_crds(client: &Client) {
    let crds = fs::read_dir(cache().join("crds")).expect("`scripts/k8s.sh` puts them there");
    let mut names = Vec::new();
    for file in crds {
        let text = fs::read_to_string(file.expect("an entry").path()).expect("reads");
        for mut crd in documents(&text) {
            if crd["kind"] != "CustomResourceDefinition" {
                continue;
            }
            crd["spec"]["conversion"] = json!({ "strategy": "None" });
            for version in crd["spec"]["versions"].as_array_mut().expect("versions") {
                version["served"] = (version["name"] == "v1beta1").into();
            }
            names.push(crd["metadata"]["name"].as_str().expect("a name").to_owned());
            apply(client, &crd, "").await;
        }
    }
    assert_eq!(names.len(), 4, "{names:?}");
    let api: Api<DynamicObject> =
        Api::all_with(client.clone(), &resource("apiextensions.k8s.io/v1", "CustomResourceDefinition"));
    for name in names {
        until("a CRD is established", async || {
            let crd = api.get(&name).await.ok()?;
            let conditions = crd.data["status"]["conditions"].as_array()?.clone();
            conditions.iter().any(|it| it["type"] == "Established" && it["status"] == "True").then_some(())
        })
        .await;
    }
}

/// The documents of a YAML file.
pub(crate) fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).expect("is YAML")
}

/// Waits until `found` finds something.
pub(crate) async fn until<Found>(what: &str, mut found: impl AsyncFnMut() -> Option<Found>) -> Found {
    let deadline = tokio::time::Instant::now() + READY_TIME;
    loop {
        if let Some(found) = found().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "{what}: did not come about in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A kind, whose plural is what Kubernetes makes of its name.
fn resource(version: &str, kind: &str) -> ApiResource {
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let lower = kind.to_lowercase();
    let plural = match lower.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None if lower.ends_with("ss") || lower.ends_with('x') => format!("{lower}es"),
        None => format!("{lower}s"),
    };
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), &plural)
}

const CLUSTER_KINDS: [&str; 6] =
    ["Namespace", "Node", "CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding", "RuntimeClass"];

pub(crate) async fn apply(client: &Client, object: &Value, namespace: &str) {
    let text = |value: &Value| value.as_str().expect("is text").to_owned();
    let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let (name, resource) = (text(&object["metadata"]["name"]), resource(&version, &kind));
    let own = object["metadata"]["namespace"].as_str().unwrap_or(namespace);
    let api: Api<DynamicObject> = if CLUSTER_KINDS.contains(&&*kind) {
        Api::all_with(client.clone(), &resource)
    } else {
        Api::namespaced_with(client.clone(), own, &resource)
    };
    let as_test = PatchParams::apply("test").force();
    let applied = api.patch(&name, &as_test, &Patch::Apply(object)).await;
    applied.unwrap_or_else(|error| panic!("{kind} {name}: {error}"));
}

/// An address of a pod's network.
pub(crate) fn pod_address(number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    IpAddr::from([10, 77, high.saturating_add(1), low])
}
