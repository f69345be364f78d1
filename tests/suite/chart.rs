// SPDX-License-Identifier: Apache-2.0
//! The chart: what it renders (`manifests/all.yaml`, which `scripts/chart.sh check` holds to it) keeps
//! its promises, and what cannot work is refused with what to do instead.
//!
//! The refusals need helm: `scripts/helm.sh` builds it; `POSTERN_ALLOW_SKIP=1` leaves them out.

mod options;

use crate::running::project;
use postern_common::settings::{ALL, Setting};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const CHART: &str = "charts/agent-sandbox-kit";
/// Where sandboxes are, unless values say otherwise.
const SANDBOXES: &str = "sandbox-system";

/// Every object that the chart makes for Google's cloud.
fn objects() -> Vec<Value> {
    let text = fs::read_to_string(project().join("manifests/all.yaml")).expect("manifests/all.yaml");
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
    objects.into_iter().filter(|object| !object.is_null()).collect()
}

fn of_kind<'a>(objects: &'a [Value], kind: &'static str) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter(move |object| object["kind"] == kind)
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// The pods of an object, wherever it has them.
fn pod(object: &Value) -> Option<&Value> {
    if object["kind"] == "Pod" {
        return object.get("spec");
    }
    let places = ["/spec/template/spec", "/spec/jobTemplate/spec/template/spec", "/spec/podTemplate/spec"];
    places.iter().find_map(|place| object.pointer(place))
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"].into_iter().filter_map(|kind| pod[kind].as_array()).flatten()
}

#[test]
fn whatever_runs_in_the_sandboxes_namespace_reaches_the_gateway_and_nothing_else() {
    let objects = objects();
    let to_gateway = json!([{
        "to": [{
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "postern"}},
            "podSelector": {"matchLabels": {
                "app.kubernetes.io/name": "agent-sandbox-kit",
                "app.kubernetes.io/instance": "agent-sandbox-kit",
                "app.kubernetes.io/component": "gateway",
            }},
        }],
        "ports": [{"port": 8081, "protocol": "TCP"}],
    }]);
    let policies: Vec<_> = of_kind(&objects, "NetworkPolicy")
        .filter(|policy| policy["metadata"]["namespace"] == SANDBOXES)
        .collect();
    assert_eq!(policies.len(), 1, "policies add up: more of them may allow more");
    assert_eq!(policies[0]["spec"]["podSelector"], json!({}));
    assert_eq!(policies[0]["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
    assert_eq!(policies[0]["spec"]["egress"], to_gateway);
    let templates: Vec<_> = of_kind(&objects, "SandboxTemplate").collect();
    assert!(!templates.is_empty());
    for template in templates {
        let spec = &template["spec"];
        assert_eq!(spec["networkPolicyManagement"], "Managed");
        assert_eq!(spec["networkPolicy"]["egress"], to_gateway, "{}", name(template));
        assert_eq!(spec["networkPolicy"]["ingress"], policies[0]["spec"]["ingress"]);
    }
}

#[test]
fn retention_runs_by_itself_with_two_keys_and_without_the_clusters_api() {
    let objects = objects();
    let job = of_kind(&objects, "CronJob").next().expect("is made");
    let pod = pod(job).expect("has pods");
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(job["spec"]["concurrencyPolicy"], "Forbid");
    let container = &pod["containers"][0];
    assert_eq!(container["args"], json!(["retention", "--json"]));
    let secrets = pod.pointer("/volumes/1/projected/sources").and_then(Value::as_array).expect("secrets");
    let paths: Vec<_> = secrets.iter().filter_map(|source| source.pointer("/secret/items/0/path")).collect();
    assert_eq!(paths, ["POSTERN_MASTER_KEY", "DATABASE_URL"], "it mints no token and signs no order");
    let alone =
        fs::read_to_string(project().join("manifests/data-retention-cronjob.yaml")).expect("is written");
    assert!(alone.contains("kind: CronJob"));
}

#[test]
fn only_the_orchestrator_speaks_to_sandboxes() {
    let objects = objects();
    let from = of_kind(&objects, "NetworkPolicy")
        .find(|policy| policy["metadata"]["namespace"] == SANDBOXES)
        .map(|policy| policy["spec"]["ingress"].clone());
    let from = from.expect("there is one");
    let peers = from[0]["from"].as_array().expect("peers");
    assert_eq!((from.as_array().map(Vec::len), peers.len()), (Some(1), 1));
    let labels = &peers[0]["podSelector"]["matchLabels"];
    assert_eq!(labels["app.kubernetes.io/component"], "orchestrator");
    let ports = from[0]["ports"].as_array().expect("ports").iter().map(|port| port["port"].as_u64());
    assert_eq!(ports.collect::<Vec<_>>(), [Some(49983), Some(49984)]);
}

#[test]
fn every_pod_keeps_to_restricted() {
    let objects = objects();
    let looked_at = keep_to_restricted(&objects);
    assert!(looked_at >= 7, "only {looked_at} containers");
    let namespace = of_kind(&objects, "Namespace").next().expect("the sandboxes' namespace");
    assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "restricted");
}

/// Holds every pod of these objects to it; how many containers were looked at.
fn keep_to_restricted(objects: &[Value]) -> usize {
    let mut looked_at = 0;
    for object in objects {
        let Some(pod) = pod(object) else { continue };
        let what = format!("{} {}", object["kind"], name(object));
        let whole = &pod["securityContext"];
        assert_eq!(
            (&whole["runAsNonRoot"], &whole["seccompProfile"]["type"]),
            (&json!(true), &json!("RuntimeDefault")),
            "{what}"
        );
        assert!(whole["runAsUser"].as_u64().is_some_and(|user| user > 0), "{what} is root");
        for field in ["hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"] {
            assert!(pod[field].as_bool() != Some(true), "{what}: {field}");
        }
        for volume in pod["volumes"].as_array().into_iter().flatten() {
            let kinds: BTreeSet<_> =
                volume.as_object().expect("a volume").keys().map(String::as_str).collect();
            let allowed =
                ["configMap", "emptyDir", "projected", "secret", "persistentVolumeClaim", "downwardAPI"];
            assert!(kinds.iter().all(|kind| *kind == "name" || allowed.contains(kind)), "{what}: {kinds:?}");
        }
        for container in containers(pod) {
            let own = &container["securityContext"];
            assert_eq!(own["allowPrivilegeEscalation"], false, "{what}");
            assert_eq!(own["readOnlyRootFilesystem"], true, "{what}");
            assert_eq!(own["capabilities"], json!({"drop": ["ALL"]}), "{what}");
            assert!(container["resources"]["limits"]["memory"].is_string(), "{what} has no limit");
            looked_at += 1;
        }
    }
    looked_at
}

#[test]
fn a_sandbox_has_no_account_no_names_and_no_default_runtime() {
    let objects = objects();
    for template in of_kind(&objects, "SandboxTemplate") {
        let pod = pod(template).expect("a pod");
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert_eq!(pod["enableServiceLinks"], false);
        assert_eq!(
            (&pod["dnsPolicy"], &pod["dnsConfig"]),
            (&json!("None"), &json!({"nameservers": ["127.0.0.1"]}))
        );
        assert!(pod["runtimeClassName"].as_str().is_some_and(|class| !class.is_empty()));
        for container in containers(pod) {
            assert!(container.get("envFrom").is_none(), "what a pod is given is written out");
        }
    }
}

#[test]
fn the_orchestrator_may_do_what_it_needs_and_nothing_else() {
    let objects = objects();
    assert_eq!(of_kind(&objects, "ClusterRole").count() + of_kind(&objects, "ClusterRoleBinding").count(), 0);
    let role = of_kind(&objects, "Role").find(|role| name(role).ends_with("-orchestrator")).expect("a role");
    assert_eq!(role["metadata"]["namespace"], SANDBOXES);
    let rules = role["rules"].as_array().expect("rules").iter();
    let allowed: BTreeSet<String> = rules
        .flat_map(|rule| {
            let texts = |field: &str| {
                let list = rule[field].as_array().cloned().unwrap_or_default();
                list.into_iter().filter_map(|text| text.as_str().map(ToOwned::to_owned)).collect::<Vec<_>>()
            };
            let (resources, verbs) = (texts("resources"), texts("verbs"));
            resources
                .into_iter()
                .flat_map(move |of| verbs.clone().into_iter().map(move |verb| format!("{verb} {of}")))
        })
        .collect();
    let look = |of: &str| ["get", "list", "watch"].map(|verb| format!("{verb} {of}"));
    let mut wanted: BTreeSet<String> =
        ["pods", "sandboxclaims", "sandboxes", "sandboxtemplates", "sandboxwarmpools"]
            .into_iter()
            .flat_map(look)
            .collect();
    wanted.extend(["create", "delete", "patch"].map(|verb| format!("{verb} sandboxclaims")));
    wanted.insert("patch sandboxes".to_owned());
    assert_eq!(allowed, wanted);
}

#[test]
fn keys_are_made_once_and_the_chart_asks_the_cluster_nothing() {
    let objects = objects();
    let role = of_kind(&objects, "Role").find(|role| name(role).ends_with("-setup")).expect("the Jobs' role");
    let verbs: BTreeSet<_> = role["rules"]
        .as_array()
        .expect("rules")
        .iter()
        .flat_map(|rule| rule["verbs"].as_array().expect("verbs"))
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(verbs, BTreeSet::from(["create", "get"]), "what is there cannot be changed");
    let made = of_kind(&objects, "Secret").map(name).collect::<Vec<_>>();
    assert!(made.is_empty(), "no Secret of keys belongs to the release: {made:?}");
    let folders = ["templates", "templates/tests"].map(|folder| project().join(CHART).join(folder));
    let entries = folders.into_iter().flat_map(|folder| fs::read_dir(folder).expect("templates"));
    for path in entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_file()) {
        let text = fs::read_to_string(&path).expect("UTF-8");
        for word in ["lookup ", "randAlphaNum", "randBytes", "genPrivateKey", "genCA", "uuidv4", "now "] {
            assert!(
                !text.contains(&format!("{{{{ {word}")) && !text.contains(&format!("({word}")),
                "{}: {word}",
                path.display()
            );
        }
    }
}

fn setting(variable: &str) -> Option<&'static Setting> {
    ALL.iter().copied().find(|setting| setting.variable == variable)
}

#[test]
fn no_secret_is_an_environment_variable() {
    for object in &objects() {
        for entry in
            pod(object).into_iter().flat_map(containers).filter_map(|it| it["env"].as_array()).flatten()
        {
            let variable = entry["name"].as_str().expect("a name");
            let is_secret = setting(variable).is_some_and(|setting| setting.is_secret);
            assert!(!is_secret, "{} {}: {variable}", object["kind"], name(object));
            assert!(entry.pointer("/valueFrom/secretKeyRef").is_none(), "{variable}");
        }
    }
}

#[test]
fn programs_are_given_only_settings_that_they_read() {
    let mut given = BTreeSet::new();
    for object in objects().iter().filter(|object| object["kind"] != "SandboxTemplate") {
        for container in pod(object).into_iter().flat_map(containers) {
            let own = container["image"].as_str().is_some_and(|image| image.contains("/postern-"));
            for entry in container["env"].as_array().into_iter().flatten().filter(|_| own) {
                let variable = entry["name"].as_str().expect("a name");
                let is_known = setting(variable).is_some()
                    || variable
                        .strip_suffix("_FILE")
                        .and_then(setting)
                        .is_some_and(|setting| setting.is_secret);
                assert!(is_known, "{} {}: no program reads {variable}", object["kind"], name(object));
                given.insert(variable.to_owned());
            }
        }
    }
    assert!(given.contains("TOKEN_SIGNING_KEY_FILE") && given.contains("POSTERN_ORCHESTRATOR"), "{given:?}");
}

/// What a property of the values' schema allows: `orchestrator.env` and so on.
fn names_in_schema(place: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(project().join(CHART).join("values.schema.json")).expect("a schema");
    let schema: Value = serde_json::from_str(&text).expect("JSON");
    let properties = schema.pointer(place).unwrap_or_else(|| panic!("{place}"));
    properties.as_object().expect("properties").keys().cloned().collect()
}

/// Settings that no value of the chart gives, with why.
const NOT_GIVEN: &[(&str, &str)] = &[
    ("POSTERN_DATA_DIR", "the chart's own"),
    ("POSTERN_API_LISTEN", "the chart's own"),
    ("POSTERN_API_INSECURE_LISTEN", "the chart's own"),
    ("POSTERN_API_ADMIN_LISTEN", "the chart's own"),
    ("POSTERN_CONTROL_LISTEN", "the chart's own"),
    ("POSTERN_GATEWAY_LISTEN", "the chart's own"),
    ("POSTERN_GATEWAY_ADMIN_LISTEN", "the chart's own"),
    ("POSTERN_ORCHESTRATOR", "the chart's own"),
    ("POSTERN_UPSTREAMS_ALLOW", "gateway.upstreams.allow"),
    ("SANDBOX_NAMESPACE", "sandbox.namespace"),
    ("POSTERN_ISOLATION", "the RuntimeClass decides"),
    ("POSTERN_RUNTIME", "the chart's own"),
    ("POSTERN_SANDBOX_TEMPLATE", "sandbox.defaultTemplate"),
    ("POSTERN_SANDBOX_GATEWAY", "the chart's own"),
    ("POSTERN_SANDBOX_GATEWAY_CA", "gateway.tls.secretName"),
    ("POSTERN_KUBECONFIG", "of one machine"),
    ("POSTERN_RUNSC", "of one machine"),
    ("POSTERN_CONFIG", "of one machine"),
    ("POSTERN_TENANT", "of one machine"),
    ("POSTERN_GATEWAY_SOCKETS", "of one machine"),
    ("POSTERN_FILES_API", "the chart's own"),
    ("POSTERN_URL", "of commands"),
    ("POSTERN_API_KEY", "of commands"),
    ("POSTERN_GATEWAY_TLS_CERT", "gateway.tls.secretName"),
    ("POSTERN_GATEWAY_TLS_KEY", "gateway.tls.secretName"),
    ("POSTERN_GATEWAY_TLS_CLIENT_CA", "sandboxes have no certificates"),
    ("POSTERN_GATEWAY_TLS_CLIENTS", "sandboxes have no certificates"),
    ("NFS_SERVER", "cache.nfs"),
    ("POSTERN_FILES_CACHE", "cache.nfs"),
    ("POSTERN_FILES_CACHE_SIZE", "cache.size"),
    ("POSTERN_FILES_CACHE_AGE", "cache.age"),
    ("POSTERN_MIGRATE", "a Job migrates"),
    ("POSTERN_IMAGES", "of one machine"),
    ("POSTERN_FILTER_COMPILERS", "of one machine"),
];
/// What a gateway that stands alone reads.
const ALONE: [&str; 2] = ["POSTERN_GATEWAY_TOKENS_", "POSTERN_GATEWAY_SECRETS_DIR"];

#[test]
fn every_setting_can_be_given_or_has_a_reason_not_to_be() {
    let mut given = BTreeSet::new();
    for place in [
        "orchestrator/properties/env",
        "orchestrator/properties/secrets",
        "gateway/properties/env",
        "gateway/properties/secrets",
    ] {
        given.extend(names_in_schema(&format!("/properties/{place}/properties")));
    }
    let of_clouds = ["AWS_", "AZURE_", "GOOGLE_"];
    for variable in given.iter().filter(|name| !of_clouds.iter().any(|start| name.starts_with(start))) {
        assert!(setting(variable).is_some(), "values name {variable}, which no program reads");
        assert!(!NOT_GIVEN.iter().any(|(name, _)| name == variable), "{variable} can be given");
    }
    for setting in ALL {
        let has_reason = NOT_GIVEN.iter().any(|(name, _)| *name == setting.variable)
            || ALONE.iter().any(|start| setting.variable.starts_with(start));
        let is_given = given.contains(setting.variable);
        assert!(
            is_given || has_reason,
            "{} cannot be given by values: add it, or its reason",
            setting.variable
        );
    }
    let secrets = names_in_schema("/properties/orchestrator/properties/secrets/properties");
    for variable in secrets.iter().filter_map(|variable| setting(variable)) {
        assert!(variable.is_secret, "{} is no secret", variable.variable);
    }
}

/// The helm that was built, if any.
pub(crate) fn helm() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name);
    let home = || variable("HOME").map(|home| PathBuf::from(home).join(".cache/postern"));
    let cache = variable("POSTERN_CACHE").map(PathBuf::from).or_else(home).expect("HOME is set");
    let found = ["k8s/helm", "helm/helm"].map(|path| cache.join(path)).into_iter().find(|path| path.exists());
    let may_skip = variable("POSTERN_ALLOW_SKIP").is_some_and(|value| value == "1");
    assert!(found.is_some() || may_skip, "no helm: run scripts/helm.sh, or set POSTERN_ALLOW_SKIP=1");
    found
}

/// What helm makes of these values, laid over some that would do.
fn template(helm: &Path, more: &[&str]) -> Output {
    let home = tempfile::tempdir().expect("a folder");
    let enough = ["--set", "orchestrator.env.STORAGE_BUCKET=b", "--set", "database.embedded.enabled=true"];
    Command::new(helm)
        .args(["template", "kit"])
        .arg(project().join(CHART))
        .args(["--namespace", "postern"])
        .args(enough)
        .args(more)
        .env("HELM_CACHE_HOME", home.path())
        .env("HELM_CONFIG_HOME", home.path())
        .env("HELM_DATA_HOME", home.path())
        .output()
        .expect("helm starts")
}

/// What helm says to these values, which it must not take.
fn refusal(helm: &Path, more: &[&str]) -> String {
    let output = template(helm, more);
    assert!(!output.status.success(), "{more:?} is taken");
    String::from_utf8(output.stderr).expect("UTF-8")
}

/// Values, and what is said of them.
const MISTAKES: &[(&[&str], &str)] = &[
    (&["--set", "orchestrator.env.STORAGE_BUCKET="], "set orchestrator.env.STORAGE_BUCKET"),
    (&["--set", "database.embedded.enabled=false"], "no database: set orchestrator.secrets.DATABASE_URL"),
    (
        &["--set", "orchestrator.env.DATABASE_URL=postgres://u:p@h/d"],
        "DATABASE_URL is given and database.embedded.enabled is true: keep one of them",
    ),
    (&["--set", "sandbox.namespace=postern"], "sandboxes would lie beside what watches them"),
    (&["--set", "secrets.generate=false"], "nobody gives POSTERN_MASTER_KEY"),
    (&["--set", "api.ingress.enabled=true"], "API keys do not travel in clear"),
    (&["--set", "orchestrator.env.TOKEN_SIGNING_KEY=short"], "TOKEN_SIGNING_KEY"),
    (
        &["--set", "orchestrator.env.TOKEN_SIGNING_KEI=0123456789012345678901234567890123456789"],
        "TOKEN_SIGNING_KEI",
    ),
    (&["--set", "orchestrator.env.STORAGE_BACKEND=ftp"], "STORAGE_BACKEND"),
    (
        &["--set", "sandbox.runtimeClass.name=runc"],
        "sandbox.runtimeClass.name is \"runc\", and sandboxes never run in a cluster's default runtime: name",
    ),
    (&["--set", "sandbox.runtimeClass.name="], "sandbox.runtimeClass.name is \"\""),
    (
        &["--set", "gateway.autoscaling.enabled=true", "--set", "gateway.autoscaling.maxReplicas=1"],
        "gateway.autoscaling.minReplicas is 2 and maxReplicas 1: raise maxReplicas",
    ),
    (&["--set", "metrics.serviceMonitor.interval=often"], "interval"),
    (&["--set", "api.httpRoute.enabled=true"], "needs api.httpRoute.parentRefs"),
    (
        &[
            "--set",
            "orchestrator.env.POSTERN_TOKEN_OLD_KEYS=0123456789abcdef0123456789abcdef",
            "--set",
            "orchestrator.secrets.POSTERN_TOKEN_OLD_KEYS.name=s",
            "--set",
            "orchestrator.secrets.POSTERN_TOKEN_OLD_KEYS.key=k",
        ],
        "POSTERN_TOKEN_OLD_KEYS is given twice: in orchestrator.env and in orchestrator.secrets",
    ),
    (&["--set", "sandbox.defaultTemplate=none"], "which sandbox.templates does not have"),
    (
        &[
            "--set",
            "sandbox.templates.default.networkPolicy=null",
            "--set",
            "sandbox.templates.default.networkPolicyManagement=Unmanaged",
        ],
        "networkPolicyManagement",
    ),
    (&["--set", "gateway.replicas=0"], "replicas"),
    (&["--set", "orchestrator.replicas=6"], "replicas"),
    (&["--set", "retention.schedule=never"], "schedule"),
    (&["--set", "networkPolicy.enabled=false"], "enabled"),
    (&["--set", "cache.size=much"], "size"),
    (&["--set", "cache.nfs.server=10.0.0.2:/files"], "server"),
    (
        &["--set", "cache.nfs.server=10.0.0.2", "--set", "cache.existingClaim=shared"],
        "cache.nfs.server and cache.existingClaim are both given: keep the one",
    ),
];

#[test]
fn values_that_cannot_work_are_refused_with_what_to_do() {
    let Some(helm) = helm() else { return };
    for (values, told) in MISTAKES {
        let said = refusal(&helm, values);
        assert!(said.contains(told), "{values:?}: {said}");
    }
}
