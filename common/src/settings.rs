// SPDX-License-Identifier: Apache-2.0
//! Settings of the processes: flags over environment over `postern.toml` over defaults.
//!
//! One table ([`ALL`]) names every setting once, with its variable, its key and its default;
//! [`Settings::resolve`] layers the sources, remembers where each value came from and refuses what
//! it does not know. Nothing here reads the environment: `main` hands it in. A tenant's folder is
//! not settings; see [`crate::folder`].
//!
//! ```text
//!   flags ──▶ environment ──▶ postern.toml ──▶ default        the first that has a value wins
//!   a secret may be in a file instead: NAME_FILE, name_file
//! ```

mod layers;
mod values;

pub use values::{
    AzureCloud, ClientCertificates, FilesAt, KeptTimes, ListenAddress, LogFormatName, MigrateAtStart,
    RuntimeKind, SandboxCaps, Storage, StorageKind, TokenSettings, WantedIsolation,
};

use crate::secret::Secret;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// One setting: its names, and what it is when nobody says.
#[derive(Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key in `postern.toml`, dotted; flags are named after it.
    pub key: &'static str,
    /// The environment variable.
    pub variable: &'static str,
    /// Its value when no source has one.
    pub default: Option<&'static str>,
    /// Never shown, and accepted from a file (`…_FILE`).
    pub is_secret: bool,
    /// What it is for, in one line.
    pub about: &'static str,
}

macro_rules! settings {
    ($($constant:ident = $key:literal, $variable:literal, $default:expr, $kind:ident, $about:literal;)*) => {
        /// Names of the settings, so that a typo does not compile.
        pub mod name {
            use super::Setting;
            $(
                #[doc = $about]
                pub const $constant: &Setting = &Setting {
                    key: $key,
                    variable: $variable,
                    default: $default,
                    is_secret: settings!(@ $kind),
                    about: $about,
                };
            )*
        }
        /// Every setting there is.
        pub const ALL: &[&Setting] = &[$(name::$constant),*];
    };
    (@ secret) => { true };
    (@ open) => { false };
}

settings! {
    TOKEN_SIGNING_KEY = "token.signing_key", "TOKEN_SIGNING_KEY", None, secret, "signs session tokens; at least 32 bytes";
    TOKEN_OLD_KEYS = "token.old_keys", "POSTERN_TOKEN_OLD_KEYS", None, secret, "keys that still verify, separated by commas";
    TOKEN_TTL = "token.ttl", "TOKEN_TTL", Some("1h"), open, "life of a session token, at most 1h";
    MASTER_KEY = "master_key", "POSTERN_MASTER_KEY", None, secret, "encrypts what the database keeps secret; 32 bytes in base64";
    STORAGE_BACKEND = "storage.backend", "STORAGE_BACKEND", Some("local"), open, "where users' files are: gcs, azure, s3 or local";
    STORAGE_BUCKET = "storage.bucket", "STORAGE_BUCKET", None, open, "the bucket or container of users' files";
    AZURE_CLOUD = "storage.azure_cloud", "POSTERN_AZURE_CLOUD", Some("public"), open, "which of Azure's clouds: public or government";
    DATABASE_URL = "database.url", "DATABASE_URL", None, secret, "postgres://… or sqlite://…";
    MIGRATE = "database.migrate", "POSTERN_MIGRATE", None, open, "tables that are not up to date: `auto` mends them at start, `check` refuses to start [auto for SQLite, check for Postgres]";
    BACKEND_URL = "backend.url", "BACKEND_URL", None, open, "the backend `default` of tenant `default`";
    NFS_SERVER = "nfs.server", "NFS_SERVER", None, open, "folder that an NFS export is mounted on, for the cache of users' files";
    FILES_CACHE = "files.cache", "POSTERN_FILES_CACHE", None, open, "folder of the cache of users' files [`postern-cache` on `NFS_SERVER`, else cache in the data folder]";
    FILES_CACHE_SIZE = "files.cache_size", "POSTERN_FILES_CACHE_SIZE", Some("10GiB"), open, "how much it may hold; with 0 sandboxes get all their files through the gateway";
    FILES_CACHE_AGE = "files.cache_age", "POSTERN_FILES_CACHE_AGE", Some("30d"), open, "how long a file that nobody uses stays in it";
    SANDBOX_NAMESPACE = "sandbox.namespace", "SANDBOX_NAMESPACE", Some("sandbox-system"), open, "Kubernetes namespace of sandboxes";
    RUNTIME = "sandbox.runtime", "POSTERN_RUNTIME", Some("local"), open, "where sandboxes are made: local or kubernetes";
    SANDBOX_TEMPLATE = "sandbox.template", "POSTERN_SANDBOX_TEMPLATE", Some("default"), open, "SandboxTemplate of the templates that name none";
    SANDBOX_GATEWAY = "sandbox.gateway", "POSTERN_SANDBOX_GATEWAY", None, open, "where pods find the gateway, such as `https://postern-gateway:8081`";
    SANDBOX_GATEWAY_CA = "sandbox.gateway_ca", "POSTERN_SANDBOX_GATEWAY_CA", None, open, "authority of its certificate, a PEM file";
    SANDBOX_CONTROL_KEY = "sandbox.control_key", "POSTERN_SANDBOX_CONTROL_KEY", None, secret, "signs what is said to pods (Ed25519); 32 bytes in base64";
    KUBECONFIG = "sandbox.kubeconfig", "POSTERN_KUBECONFIG", None, open, "kubeconfig instead of the pod's own service account";
    ISOLATION = "sandbox.isolation", "POSTERN_ISOLATION", Some("auto"), open, "gvisor, namespaces or auto";
    IMAGES = "sandbox.images", "POSTERN_IMAGES", None, open, "folder with root file systems that templates may name, folders or tarballs [images in the data folder]";
    RUNSC = "sandbox.runsc", "POSTERN_RUNSC", None, open, "path of gVisor's runsc, if it is not on PATH";
    MAX_MEMORY = "sandbox.max_memory", "POSTERN_SANDBOX_MAX_MEMORY", Some("8GiB"), open, "memory that a template may ask for";
    MAX_CPU = "sandbox.max_cpu", "POSTERN_SANDBOX_MAX_CPU", Some("4"), open, "cores that a template may ask for";
    MAX_PIDS = "sandbox.max_pids", "POSTERN_SANDBOX_MAX_PIDS", Some("4096"), open, "processes and threads that a template may ask for";
    MAX_DISK = "sandbox.max_disk", "POSTERN_SANDBOX_MAX_DISK", Some("16GiB"), open, "size of `/data` that a template may ask for";
    MAX_WARM_POOL = "sandbox.max_warm_pool", "POSTERN_SANDBOX_MAX_WARM_POOL", Some("20"), open, "sandboxes that a tenant's templates may have kept ready, together";
    MAX_SANDBOX_TTL = "sandbox.max_ttl", "POSTERN_SANDBOX_MAX_TTL", Some("24h"), open, "longest life of a sandbox, at most 24h";
    KEEP_SANDBOXES = "retention.sandboxes", "POSTERN_RETENTION_SANDBOXES", Some("30d"), open, "how long a sandbox that is over is listed, at least 1d";
    KEEP_EVENTS = "retention.events", "POSTERN_RETENTION_EVENTS", Some("365d"), open, "how long lines of the audit log are kept, at least 1d";
    DATA_DIR = "data_dir", "POSTERN_DATA_DIR", Some("./.postern"), open, "where this installation keeps everything";
    CONFIG = "config", "POSTERN_CONFIG", None, open, "a tenant's configuration folder, watched";
    TENANT = "tenant", "POSTERN_TENANT", Some("default"), open, "the tenant of the watched folder";
    API_LISTEN = "api.listen", "POSTERN_API_LISTEN", Some("127.0.0.1:8080"), open, "REST API";
    INSECURE_LISTEN = "api.insecure_listen", "POSTERN_API_INSECURE_LISTEN", Some("false"), open, "lets the API and admin ports listen off loopback, where they speak plain HTTP";
    API_ADMIN_LISTEN = "api.admin_listen", "POSTERN_API_ADMIN_LISTEN", Some("127.0.0.1:9090"), open, "health and metrics of the orchestrator";
    GATEWAY_LISTEN = "gateway.listen", "POSTERN_GATEWAY_LISTEN", Some("127.0.0.1:8081"), open, "the gateway's door over TCP";
    GATEWAY_ADMIN_LISTEN = "gateway.admin_listen", "POSTERN_GATEWAY_ADMIN_LISTEN", Some("127.0.0.1:9091"), open, "health and metrics of the gateway";
    GATEWAY_TLS_CERT = "gateway.tls_cert", "POSTERN_GATEWAY_TLS_CERT", None, open, "certificate of that door, a PEM file; read again when it changes";
    GATEWAY_TLS_KEY = "gateway.tls_key", "POSTERN_GATEWAY_TLS_KEY", None, open, "its private key, a PEM file";
    GATEWAY_TLS_CLIENT_CA = "gateway.tls_client_ca", "POSTERN_GATEWAY_TLS_CLIENT_CA", None, open, "authorities of client certificates, a PEM file";
    GATEWAY_TLS_CLIENTS = "gateway.tls_clients", "POSTERN_GATEWAY_TLS_CLIENTS", Some("required"), open, "whether client certificates are required or optional, where there are authorities";
    UPSTREAMS_ALLOW = "gateway.upstreams.allow", "POSTERN_UPSTREAMS_ALLOW", None, open, "hosts and networks that backends may be at";
    TIMEOUT_CEILING = "gateway.timeout_ceiling", "POSTERN_TIMEOUT_CEILING", Some("10m"), open, "the longest timeout that tenants may set, at most 24h";
    REQUEST_CEILING = "gateway.request_ceiling", "POSTERN_REQUEST_CEILING", Some("4096"), open, "the most requests in flight that tenants may set";
    GATEWAY_ORCHESTRATOR = "gateway.orchestrator", "POSTERN_ORCHESTRATOR", None, open, "control stream that a gateway of its own follows, such as orchestrator:8082; of several, separated by commas, one after the other";
    GATEWAY_CREDENTIAL = "gateway.credential", "POSTERN_GATEWAY_CREDENTIAL", None, secret, "that gateway's credential, from `postern gateways add`";
    GATEWAY_STALENESS = "gateway.staleness", "POSTERN_GATEWAY_STALENESS", Some("10s"), open, "how old its state may grow without an orchestrator, at most 1h";
    GATEWAY_SPOOL = "gateway.spool", "POSTERN_GATEWAY_SPOOL", Some("64MiB"), open, "decisions that may wait on its disk";
    GATEWAY_FAIL_CLOSED = "gateway.fail_closed_on_audit_loss", "POSTERN_FAIL_CLOSED_ON_AUDIT_LOSS", Some("false"), open, "refuse requests rather than lose their records";
    OTLP_ENDPOINT = "otlp.endpoint", "POSTERN_OTLP_ENDPOINT", None, open, "collector that gets a span for each request, such as `http://collector:4318`";
    OTLP_HEADERS = "otlp.headers", "POSTERN_OTLP_HEADERS", None, secret, "headers for it: NAME=VALUE, separated by commas";
    ACCESS_LOG = "gateway.access_log", "POSTERN_GATEWAY_ACCESS_LOG", Some("off"), open, "a line of JSON for each request: off, stdout or a file";
    GATEWAY_SECRETS_DIR = "gateway.secrets_dir", "POSTERN_GATEWAY_SECRETS_DIR", None, open, "a gateway that stands alone: folder with a file for each secret";
    TOKENS_ISSUER = "gateway.tokens.issuer", "POSTERN_GATEWAY_TOKENS_ISSUER", None, open, "a gateway that stands alone: the `iss` of its tokens";
    TOKENS_AUDIENCE = "gateway.tokens.audience", "POSTERN_GATEWAY_TOKENS_AUDIENCE", None, open, "the `aud` that they name";
    TOKENS_ALGORITHM = "gateway.tokens.algorithm", "POSTERN_GATEWAY_TOKENS_ALGORITHM", None, open, "how they are signed: `HS256`, `EdDSA`, `ES256` or `RS256`";
    TOKENS_SECRET = "gateway.tokens.secret", "POSTERN_GATEWAY_TOKENS_SECRET", None, secret, "the key of HS256";
    TOKENS_KEYS = "gateway.tokens.keys", "POSTERN_GATEWAY_TOKENS_KEYS", None, open, "files with public keys (PEM), separated by commas";
    TOKENS_JWKS = "gateway.tokens.jwks", "POSTERN_GATEWAY_TOKENS_JWKS", None, open, "URL of the issuer's key set, instead of files";
    TOKENS_USER = "gateway.tokens.user_claim", "POSTERN_GATEWAY_TOKENS_USER_CLAIM", Some("sub"), open, "the claim that names the user";
    TOKENS_CONVERSATION = "gateway.tokens.conversation_claim", "POSTERN_GATEWAY_TOKENS_CONVERSATION_CLAIM", Some("conversation_id"), open, "the claim that names the conversation";
    TOKENS_OPERATIONS = "gateway.tokens.operations_claim", "POSTERN_GATEWAY_TOKENS_OPERATIONS_CLAIM", Some("operations"), open, "the claim that lists operations, or names them in one text";
    TOKENS_DEFAULT_OPERATIONS = "gateway.tokens.operations", "POSTERN_GATEWAY_TOKENS_OPERATIONS", None, open, "operations of tokens without that claim, separated by commas";
    GATEWAY_SOCKETS = "gateway.sockets", "POSTERN_GATEWAY_SOCKETS", Some("false"), open, "serve this machine's sandboxes by their unix sockets";
    CONTROL_LISTEN = "control.listen", "POSTERN_CONTROL_LISTEN", Some("127.0.0.1:8082"), open, "control stream for gateways of their own";
    FILES_API = "files.api", "POSTERN_FILES_API", None, open, "where a gateway of its own brings sandboxes' syncs to the orchestrator: a socket of this machine (a path from `/` on, or `unix:PATH`), or HOST:PORT, of which a gateway takes several, separated by commas";
    FILTER_COMPILERS = "filters.compilers", "POSTERN_FILTER_COMPILERS", None, open, "`postern-compile` of other releases, separated by commas: they compile for gateways that still run those";
    FILTER_COMPILE_CPU = "filters.compile_cpu", "POSTERN_FILTER_COMPILE_CPU", Some("30s"), open, "processor time that compiling one filter may take, from 1s to 10m";
    FILTER_COMPILE_MEMORY = "filters.compile_memory", "POSTERN_FILTER_COMPILE_MEMORY", Some("2GiB"), open, "memory that it may take, at least 128MiB; two compile at once";
    LOG = "log.filter", "POSTERN_LOG", Some("info"), open, "what is logged, such as `info,postern_gateway=debug`";
    LOG_FORMAT = "log.format", "POSTERN_LOG_FORMAT", Some("text"), open, "text or json";
    URL = "client.url", "POSTERN_URL", None, open, "the API that commands talk to";
    API_KEY = "client.api_key", "POSTERN_API_KEY", None, secret, "the key that commands use";
}

/// Where settings come from, before anything was judged.
#[derive(Debug, Default)]
pub struct Sources {
    /// Values given on the command line, by the setting's key.
    pub flags: BTreeMap<&'static str, String>,
    /// The environment, as `main` read it.
    pub environment: BTreeMap<String, String>,
    /// `postern.toml`: where it was and what it said.
    pub file: Option<(PathBuf, String)>,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The command line.
    Flag,
    /// This environment variable.
    Variable(String),
    /// This line of `postern.toml`.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// Nobody said.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => formatter.write_str("flag"),
            Self::Variable(name) => write!(formatter, "{name}"),
            Self::File { path, line } => write!(formatter, "{}:{line}", path.display()),
            Self::Default => formatter.write_str("default"),
        }
    }
}

/// One mistake in the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingMistake {
    /// The variable, flag or line that is wrong.
    pub place: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// Every mistake in the settings; there is at least one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct SettingMistakes(pub Vec<SettingMistake>);

impl fmt::Display for SettingMistakes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        write!(formatter, "{count} mistake{} in the settings", if count == 1 { "" } else { "s" })?;
        self.0.iter().try_for_each(|it| write!(formatter, "\n  {}: {}", it.place, it.message))
    }
}

/// A value as it was given, with where it was.
#[derive(Debug, Clone)]
struct Given {
    text: Secret<String>,
    origin: Origin,
}

/// All settings, layered. Typed values are read by the methods of `values.rs`, each of which
/// reports into the same list of mistakes.
#[derive(Debug, Clone)]
pub struct Settings {
    given: BTreeMap<&'static str, Given>,
    /// Variables of the clouds' own tools.
    clouds: BTreeMap<String, Secret<String>>,
}

/// A line of `postern config explain`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Explained {
    /// The setting's key.
    pub key: &'static str,
    /// Its environment variable.
    pub variable: &'static str,
    /// Its value; `set` for a secret; absent when nothing sets it.
    pub value: Option<String>,
    /// Where the value came from; absent with the value.
    pub origin: Option<String>,
    /// What the setting is for.
    pub about: &'static str,
}

impl Settings {
    /// Layers the sources and checks every value.
    ///
    /// Reads the files that `…_FILE` settings name, and nothing else.
    ///
    /// # Errors
    /// [`SettingMistakes`] lists all mistakes: unknown names, a secret that was given twice,
    /// values that cannot be what they should be.
    pub fn resolve(sources: &Sources) -> Result<Self, SettingMistakes> {
        let mut mistakes = Vec::new();
        let clouds = layers::clouds(&sources.environment);
        let settings = Self { given: layers::layer(sources, &mut mistakes), clouds };
        settings.check(&mut mistakes);
        if mistakes.is_empty() { Ok(settings) } else { Err(SettingMistakes(mistakes)) }
    }

    /// Every setting with its value and where it came from, without any secret.
    #[must_use]
    pub fn explain(&self) -> Vec<Explained> {
        let explain = |setting: &&'static Setting| {
            let given = self.given.get(setting.key);
            let shown = |given: &Given| {
                if setting.is_secret { "set".to_owned() } else { given.text.reveal().clone() }
            };
            Explained {
                key: setting.key,
                variable: setting.variable,
                value: given.map(shown),
                origin: given.map(|given| given.origin.to_string()),
                about: setting.about,
            }
        };
        ALL.iter().map(explain).collect()
    }

    /// The value as text, whoever gave it. For secrets, [`Settings::secret`].
    #[must_use]
    pub fn text(&self, setting: &Setting) -> Option<&str> {
        debug_assert!(!setting.is_secret, "secrets are read as secrets");
        self.raw(setting)
    }

    /// A secret's value.
    #[must_use]
    pub fn secret(&self, setting: &Setting) -> Option<Secret<String>> {
        self.given.get(setting.key).map(|given| given.text.clone())
    }

    /// Whether somebody gave this setting a value, rather than nobody and the default did.
    #[must_use]
    pub fn is_given(&self, setting: &Setting) -> bool {
        self.given.get(setting.key).is_some_and(|given| given.origin != Origin::Default)
    }

    fn raw(&self, setting: &Setting) -> Option<&str> {
        self.given.get(setting.key).map(|given| given.text.reveal().as_str())
    }
}

#[cfg(test)]
mod tests;
