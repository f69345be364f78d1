// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::telemetry::LogFormat;
use proptest::prelude::*;
use std::time::Duration;

const KEY: &str = "0123456789abcdef0123456789abcdef";

fn sources(environment: &[(&str, &str)], file: &str) -> Sources {
    Sources {
        flags: BTreeMap::new(),
        environment: environment.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect(),
        file: Some((PathBuf::from("postern.toml"), file.to_owned())),
    }
}

fn resolve(environment: &[(&str, &str)], file: &str) -> Settings {
    Settings::resolve(&sources(environment, file)).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

fn mistakes(environment: &[(&str, &str)], file: &str) -> String {
    Settings::resolve(&sources(environment, file)).expect_err("is refused").to_string()
}

fn origin(settings: &Settings, key: &str) -> Option<String> {
    settings.explain().into_iter().find(|line| line.key == key).and_then(|line| line.origin)
}

#[test]
fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
    let file = "tenant = 'file'";
    let mut all = sources(&[("POSTERN_TENANT", "variable")], file);
    all.flags.insert(name::TENANT.key, "flag".to_owned());
    let tenant = |settings: &Settings| settings.tenant().expect("a tenant").to_string();
    let flag = Settings::resolve(&all).expect("resolves");
    assert_eq!((tenant(&flag).as_str(), origin(&flag, "tenant").as_deref()), ("flag", Some("flag")));
    let variable = resolve(&[("POSTERN_TENANT", "variable")], file);
    assert_eq!(tenant(&variable), "variable");
    assert_eq!(origin(&variable, "tenant").as_deref(), Some("POSTERN_TENANT"));
    let from_file = resolve(&[], file);
    assert_eq!(tenant(&from_file), "file");
    assert_eq!(origin(&from_file, "tenant").as_deref(), Some("postern.toml:1"));
    let default = resolve(&[], "");
    assert_eq!(tenant(&default), "default");
    assert_eq!(origin(&default, "tenant").as_deref(), Some("default"));
}

#[test]
fn a_certificate_comes_with_its_key() {
    let both = [("POSTERN_GATEWAY_TLS_CERT", "tls.crt"), ("POSTERN_GATEWAY_TLS_KEY", "tls.key")];
    let settings = resolve(&both, "gateway.tls_client_ca = 'ca.crt'");
    assert_eq!(settings.path(name::GATEWAY_TLS_KEY), Some(PathBuf::from("tls.key")));
    assert_eq!(settings.client_certificates(), ClientCertificates::Required);
    let optional = resolve(&both, "gateway.tls_clients = 'optional'");
    assert_eq!(optional.client_certificates(), ClientCertificates::Optional);
    for (alone, lacks) in
        [(&both[..1], "needs `POSTERN_GATEWAY_TLS_KEY`"), (&both[1..], "needs `POSTERN_GATEWAY_TLS_CERT`")]
    {
        assert!(mistakes(alone, "").contains(lacks), "{lacks}");
    }
    assert!(
        mistakes(&[("POSTERN_GATEWAY_TLS_CLIENT_CA", "ca.crt")], "")
            .contains("needs `POSTERN_GATEWAY_TLS_CERT`")
    );
    assert!(mistakes(&both, "gateway.tls_clients = 'maybe'").contains("is none of `required`, `optional`"));
}

#[test]
fn the_names_of_the_original_kit_work() {
    let settings = resolve(
        &[
            ("TOKEN_SIGNING_KEY", KEY),
            ("TOKEN_TTL", "30m"),
            ("STORAGE_BACKEND", "s3"),
            ("STORAGE_BUCKET", "files"),
            ("BACKEND_URL", "http://localhost:3000"),
            ("DATABASE_URL", "postgres://u:p@db/postern"),
            ("NFS_SERVER", "10.0.0.2"),
            ("SANDBOX_NAMESPACE", "agents"),
        ],
        "",
    );
    assert_eq!(settings.token().ttl, Duration::from_secs(1800));
    assert!(settings.token().signing_key.is_some());
    assert_eq!(
        settings.storage(),
        Storage { kind: StorageKind::S3, bucket: Some("files".into()), ..Storage::default() }
    );
    assert_eq!(settings.backend_url().expect("a URL").as_str(), "http://localhost:3000/");
    assert_eq!(settings.text(name::SANDBOX_NAMESPACE), Some("agents"));
}

#[test]
fn the_cache_of_files_lies_where_somebody_said_or_on_a_mount() {
    let folder =
        |variables: &[(&str, &str)]| resolve(variables, "").storage().cache.map(|cache| cache.folder);
    assert_eq!(folder(&[]), Some(None));
    assert_eq!(folder(&[("NFS_SERVER", "10.0.0.2")]), Some(None), "no folder of this machine");
    assert_eq!(folder(&[("NFS_SERVER", "/mnt/nfs")]), Some(Some("/mnt/nfs/postern-cache".into())));
    let both = [("NFS_SERVER", "/mnt/nfs"), ("POSTERN_FILES_CACHE", "/var/cache/files")];
    assert_eq!(folder(&both), Some(Some("/var/cache/files".into())));
    assert_eq!(folder(&[("POSTERN_FILES_CACHE_SIZE", "0")]), None);
    assert!(mistakes(&[("POSTERN_FILES_CACHE_SIZE", "much")], "").contains("POSTERN_FILES_CACHE_SIZE"));
    assert!(mistakes(&[("POSTERN_FILES_CACHE_AGE", "1s")], "").contains("from 1h"));
}

#[test]
fn syncs_are_brought_to_a_socket_or_to_hosts() {
    let at = |text: &str| resolve(&[("POSTERN_FILES_API", text)], "").files_api();
    assert_eq!(at(""), None);
    for path in ["/var/lib/postern/files.sock", "/run/files:8083", "files.sock", "run/files:8083"] {
        assert_eq!(at(&format!("unix:{path}")), Some(FilesAt::Socket(path.into())));
        if path.starts_with('/') {
            assert_eq!(at(path), Some(FilesAt::Socket(path.into())));
        }
    }
    let hosts = ["orchestrator:8083", "10.0.0.3:8083", "[fd00::3]:8083"].map(str::to_owned).to_vec();
    assert_eq!(at("orchestrator:8083, 10.0.0.3:8083,[fd00::3]:8083"), Some(FilesAt::Hosts(hosts)));
}

#[test]
fn a_host_without_its_port_is_no_socket() {
    for text in [
        "orchestrator",
        "orchestrator:",
        "orchestrator:files",
        ":8083",
        "orchestrator:8083,10.0.0.3",
        "http://orchestrator:8083",
        "fd00::3",
        "files.sock",
        "unix:",
        ",",
    ] {
        let told = mistakes(&[("POSTERN_FILES_API", text)], "");
        assert!(told.contains("POSTERN_FILES_API: `") && told.contains("nor HOST:PORT"), "{text}: {told}");
    }
    insta::assert_snapshot!(mistakes(&[("POSTERN_FILES_API", "orchestrator")], ""), @"
    1 mistake in the settings
      POSTERN_FILES_API: `orchestrator` is neither a socket's path (one that begins with `/`, or `unix:PATH`) nor HOST:PORT such as orchestrator:8083
    ");
}

#[test]
fn every_mistake_is_told_at_once_with_its_place() {
    let told = mistakes(
        &[
            ("TOKEN_SIGNING_KEY", "change-me-in-production"),
            ("TOKEN_TTL", "2h"),
            ("POSTERN_TENNANT", "a"),
            ("POSTERN_X", ""),
        ],
        "[api]\nlisten = 'everywhere'\nlistn = 1\n[gateway.upstreams]\nallow = [{}]\n[unknown]\na = 1\n",
    );
    insta::assert_snapshot!(told, @"
    8 mistakes in the settings
      POSTERN_TENNANT: is no setting; did you mean `POSTERN_TENANT`?
      POSTERN_X: is no setting; `postern config explain` lists them all
      postern.toml:3: `api.listn` is no setting; did you mean `api.listen`?
      postern.toml:5: `gateway.upstreams.allow` wants text, a number, or a list of those
      postern.toml:6: `unknown` is no setting; `postern config explain` lists them all
      TOKEN_SIGNING_KEY: the key is the sample value `change-me-in-production`: make one with `openssl rand -base64 48`
      TOKEN_TTL: `2h` is out of range: from 1m to 1h
      api.listen (postern.toml:2): `everywhere` is no address: expected ADDRESS:PORT such as 127.0.0.1:8080, or `off`
    ");
}

#[test]
fn the_values_that_would_be_unsafe_are_refused() {
    for (variable, value, wanted) in [
        ("TOKEN_SIGNING_KEY", "short", "5 bytes"),
        ("POSTERN_TOKEN_OLD_KEYS", "0123456789abcdef0123456789abcdef,short", "5 bytes"),
        ("TOKEN_TTL", "forever", "no duration"),
        ("TOKEN_TTL", "-1h", "out of range"),
        ("POSTERN_MASTER_KEY", "aGVsbG8=", "32 bytes"),
        ("STORAGE_BACKEND", "ftp", "none of"),
        ("STORAGE_BACKEND", "gcs", "STORAGE_BUCKET"),
        ("DATABASE_URL", "mysql://x", "postgres://"),
        ("BACKEND_URL", "file:///etc/passwd", "http://HOST"),
        ("BACKEND_URL", "http://user:word@host", "without user"),
        ("POSTERN_ISOLATION", "none", "none of"),
        ("POSTERN_TENANT", "../x", "tenant name"),
        ("POSTERN_LOG_FORMAT", "xml", "none of"),
        ("POSTERN_URL", "localhost:8080", "http://HOST"),
        ("POSTERN_FILTER_COMPILE_CPU", "0s", "from 1s to 10m"),
        ("POSTERN_FILTER_COMPILE_MEMORY", "1MiB", "at least"),
    ] {
        let told = mistakes(&[(variable, value)], "");
        assert!(told.contains(wanted) && told.contains(variable), "{variable}={value}: {told}");
    }
}

#[test]
fn a_secret_may_be_in_a_file_but_not_also_beside_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("key");
    std::fs::write(&path, format!("{KEY}\n")).expect("writes");
    let path = path.to_str().expect("UTF-8");
    let settings = resolve(&[("TOKEN_SIGNING_KEY_FILE", path)], "");
    assert_eq!(settings.secret(name::TOKEN_SIGNING_KEY).expect("a key").reveal(), KEY);
    assert_eq!(origin(&settings, "token.signing_key").as_deref(), Some("TOKEN_SIGNING_KEY_FILE"));
    let in_toml = resolve(&[], &format!("[token]\nsigning_key_file = '{path}'"));
    assert_eq!(in_toml.secret(name::TOKEN_SIGNING_KEY).expect("a key").reveal(), KEY);
    let told = mistakes(&[("TOKEN_SIGNING_KEY_FILE", path), ("TOKEN_SIGNING_KEY", KEY)], "");
    assert!(told.contains("given twice"), "{told}");
    let told = mistakes(&[("TOKEN_SIGNING_KEY_FILE", "/nowhere/key")], "");
    assert!(told.contains("cannot be read"), "{told}");
}

#[test]
fn what_is_no_secret_has_no_file_variant() {
    let told = mistakes(&[("POSTERN_TENANT_FILE", "/etc/passwd")], "");
    assert!(told.contains("POSTERN_TENANT_FILE: is no setting"), "{told}");
}

#[test]
fn explaining_shows_no_secret() {
    let settings = resolve(
        &[("TOKEN_SIGNING_KEY", KEY), ("DATABASE_URL", "postgres://u:hunter2@db/x")],
        "master_key = 'MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY='",
    );
    let shown = serde_json::to_string(&settings.explain()).expect("serializes");
    let debug = format!("{settings:?}");
    for secret in [KEY, "hunter2", "MDEyMzQ1"] {
        assert!(!shown.contains(secret), "{shown}");
        assert!(!debug.contains(secret), "{debug}");
    }
    let set = settings.explain().into_iter().filter(|line| line.value.as_deref() == Some("set")).count();
    assert_eq!(set, 3);
}

#[test]
fn an_empty_variable_is_an_absent_one() {
    let settings = resolve(&[("TOKEN_TTL", ""), ("BACKEND_URL", "")], "");
    assert_eq!(settings.token().ttl, Duration::from_secs(3600));
    assert_eq!(settings.backend_url(), None);
}

#[test]
fn the_variables_of_kubernetes_services_are_not_typos_of_ours() {
    resolve(
        &[
            ("POSTERN_GATEWAY_SERVICE_HOST", "10.0.0.1"),
            ("POSTERN_GATEWAY_PORT", "tcp://10.0.0.1:8081"),
            ("POSTERN_GATEWAY_PORT_8081_TCP", "tcp://10.0.0.1:8081"),
            ("POSTERN_SERVICE_PORT_HTTP", "80"),
        ],
        "",
    );
}

#[test]
fn lists_and_switched_off_listeners_are_read() {
    let settings = resolve(
        &[],
        "[gateway]\nlisten = 'off'\n[gateway.upstreams]\nallow = ['10.0.0.0/8', 'desk.internal:8443']\n[log]\nformat = 'json'",
    );
    assert_eq!(settings.address(name::GATEWAY_LISTEN), Ok(None));
    assert_eq!(settings.list(name::UPSTREAMS_ALLOW), ["10.0.0.0/8", "desk.internal:8443"]);
    assert_eq!(settings.log_format(), LogFormat::Json);
}

#[test]
fn ceilings_have_bounds_of_their_own() {
    let settings = resolve(&[("POSTERN_REQUEST_CEILING", "7")], "[gateway]\ntimeout_ceiling = '90s'");
    assert_eq!(settings.request_ceiling(), Some(7));
    assert_eq!(settings.timeout_ceiling(), Some(Duration::from_secs(90)));
    for (name, value) in [
        ("POSTERN_REQUEST_CEILING", "0"),
        ("POSTERN_TIMEOUT_CEILING", "25h"),
        ("POSTERN_TIMEOUT_CEILING", "-1s"),
        ("POSTERN_TIMEOUT_CEILING", "soon"),
    ] {
        let told = mistakes(&[(name, value)], "");
        assert!(told.contains(name), "{told}");
    }
}

#[test]
fn names_of_settings_are_unique_and_none_hides_another_table() {
    for (at, setting) in ALL.iter().enumerate() {
        for other in ALL.iter().skip(at + 1) {
            assert!(setting.key != other.key && setting.variable != other.variable, "{}", setting.key);
            assert!(!other.key.starts_with(&format!("{}.", setting.key)), "{}", setting.key);
        }
    }
}

proptest! {
    #[test]
    fn no_file_makes_it_panic(text in "\\PC{0,80}") {
        drop(Settings::resolve(&sources(&[], &text)));
    }

    #[test]
    fn no_value_of_a_variable_makes_it_panic(at in 0..ALL.len(), text in "\\PC{0,40}") {
        drop(Settings::resolve(&sources(&[(ALL[at].variable, &text)], "")));
    }
}

#[test]
fn bounds_of_the_operator_have_defaults_and_are_judged() {
    let caps = SandboxCaps::default();
    assert_eq!((caps.memory.as_u64(), caps.cpu, caps.pids), (8 << 30, 4.0, 4096));
    assert_eq!((caps.disk.as_u64(), caps.ttl.as_secs()), (16 << 30, 24 * 3600));
    let kept = KeptTimes::default();
    assert_eq!((kept.sandboxes.as_secs(), kept.events.as_secs()), (30 * 86_400, 365 * 86_400));
    let wrong = [
        ("POSTERN_SANDBOX_MAX_MEMORY", "much"),
        ("POSTERN_SANDBOX_MAX_CPU", "0"),
        ("POSTERN_SANDBOX_MAX_CPU", "NaN"),
        ("POSTERN_SANDBOX_MAX_PIDS", "-1"),
        ("POSTERN_SANDBOX_MAX_DISK", "0"),
        ("POSTERN_SANDBOX_MAX_TTL", "25h"),
        ("POSTERN_RETENTION_EVENTS", "1h"),
        ("POSTERN_API_INSECURE_LISTEN", "yes"),
    ];
    for (variable, text) in wrong {
        let environment = [(variable.to_owned(), text.to_owned())].into();
        let refused = Settings::resolve(&Sources { environment, ..Sources::default() }).expect_err(variable);
        assert!(refused.to_string().contains(variable), "{refused}");
    }
    let environment = [("POSTERN_SANDBOX_MAX_CPU".to_owned(), "0.5".to_owned())].into();
    let settings = Settings::resolve(&Sources { environment, ..Sources::default() }).expect("resolves");
    assert!((settings.sandbox_caps().cpu - 0.5).abs() < f64::EPSILON);
}

#[test]
fn settings_of_a_gateway_of_its_own_are_judged_at_start() {
    let resolve = |name: &str, text: &str| {
        let environment = BTreeMap::from([(name.to_owned(), text.to_owned())]);
        Settings::resolve(&Sources { environment, ..Sources::default() })
    };
    let defaults = Settings::resolve(&Sources::default()).expect("resolves");
    assert_eq!(defaults.staleness(), Duration::from_secs(10));
    assert_eq!(defaults.bytes(name::GATEWAY_SPOOL), Some(64 << 20));
    assert!(!defaults.flag(name::GATEWAY_FAIL_CLOSED) && defaults.gateway_credential().is_none());
    assert!(
        resolve("POSTERN_FAIL_CLOSED_ON_AUDIT_LOSS", "true").expect("is one").flag(name::GATEWAY_FAIL_CLOSED)
    );
    for (name, text) in [
        ("POSTERN_GATEWAY_STALENESS", "2h"),
        ("POSTERN_GATEWAY_STALENESS", "0s"),
        ("POSTERN_GATEWAY_STALENESS", "soon"),
        ("POSTERN_GATEWAY_SPOOL", "much"),
        ("POSTERN_FAIL_CLOSED_ON_AUDIT_LOSS", "yes"),
        ("POSTERN_GATEWAY_CREDENTIAL", "s3cret"),
        ("POSTERN_CONTROL_LISTEN", "8082"),
    ] {
        let told = resolve(name, text).expect_err("is wrong").to_string();
        assert!(told.contains(name) && !told.contains("s3cret"), "{told}");
    }
}
