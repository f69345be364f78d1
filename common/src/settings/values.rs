// SPDX-License-Identifier: Apache-2.0
//! What the settings mean: each value as a type that cannot be wrong.
//!
//! [`Settings::resolve`] has read every one of them once, so the readers here have an answer for
//! whatever cannot fail any more.
//!
//! It is long because there is a reader for each setting, and all are found in one place.

use super::{Given, Setting, SettingMistake, Settings, name};
use crate::id::TenantId;
use crate::secret::Secret;
use crate::stream::Credential;
use crate::telemetry::LogFormat;
use crate::token::{MAX_TTL, SigningKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytesize::ByteSize;
use jiff::{SignedDuration, Span, SpanRelativeTo};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use url::Url;

/// The longest ceiling of timeouts.
const LONGEST_CEILING: Duration = Duration::from_secs(24 * 60 * 60);

/// An address to listen on.
pub type ListenAddress = SocketAddr;

/// How session tokens are signed.
#[derive(Debug, Clone)]
pub struct TokenSettings {
    /// The key that signs; absent if the installation makes its own on first start.
    pub signing_key: Option<SigningKey>,
    /// Keys that still verify.
    pub old_keys: Vec<SigningKey>,
    /// A token's life.
    pub ttl: Duration,
}

/// Where users' files are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// The kind of store.
    pub kind: StorageKind,
    /// Its bucket, where it has one; of the local store the folder, if it is not the usual one.
    pub bucket: Option<String>,
    /// Which of Azure's clouds.
    pub azure_cloud: AzureCloud,
    /// Variables of the clouds' own tools, under their names.
    pub credentials: BTreeMap<String, Secret<String>>,
    /// What a machine keeps of them; `None`: nothing.
    pub cache: Option<FilesCache>,
}

/// What a machine keeps of users' files besides the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesCache {
    /// The folder; `None`: one in the data folder.
    pub folder: Option<PathBuf>,
    /// How much it may hold.
    pub bytes: u64,
    /// How long a file that nobody uses stays.
    pub age: Duration,
}

/// Where gateways bring what sandboxes' syncs say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilesAt {
    /// A socket of this machine.
    Socket(PathBuf),
    /// `HOST:PORT` of each orchestrator; where one listens, its own address.
    Hosts(Vec<String>),
}

impl Default for Storage {
    fn default() -> Self {
        Settings::unset().storage()
    }
}

/// What a template may ask for at most: the operator's bound on every tenant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SandboxCaps {
    /// Memory.
    pub memory: ByteSize,
    /// Cores.
    pub cpu: f64,
    /// Processes and threads.
    pub pids: u32,
    /// The size of `/data`.
    pub disk: ByteSize,
    /// Sandboxes kept ready, of all of a tenant's templates together.
    pub warm_pool: u32,
    /// A sandbox's life.
    pub ttl: Duration,
}

impl Default for SandboxCaps {
    fn default() -> Self {
        Settings::unset().sandbox_caps()
    }
}

/// How long what is over is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptTimes {
    /// Sandboxes that ended.
    pub sandboxes: Duration,
    /// Lines of the audit log.
    pub events: Duration,
}

impl Default for KeptTimes {
    fn default() -> Self {
        Settings::unset().kept_times()
    }
}

/// A sandbox lives no longer (contracts: Sandbox).
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);
/// What is over is kept this long at least: tokens, deadlines and waiting callers are over by then.
const SHORTEST_KEPT: Duration = Duration::from_secs(24 * 3600);
/// And no longer: a hundred years.
const LONGEST_KEPT: Duration = Duration::from_secs(36_525 * 24 * 3600);

macro_rules! words {
    ($($(#[$doc:meta])* $type:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $type { $($(#[$variant_doc])* $variant),* }

        impl FromStr for $type {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    _ => Err(format!("is none of {}", [$($word),*].map(|word| format!("`{word}`")).join(", "))),
                }
            }
        }
    )*};
}

words! {
    /// A kind of store.
    StorageKind {
        /// Google Cloud Storage.
        Gcs = "gcs",
        /// Azure Blob Storage.
        Azure = "azure",
        /// S3 and what speaks like it.
        S3 = "s3",
        /// A folder of this machine.
        Local = "local"
    }
    /// One of Azure's clouds.
    AzureCloud {
        /// The one that everybody uses.
        Public = "public",
        /// Azure Government.
        Government = "government"
    }
    /// Where sandboxes are made.
    RuntimeKind {
        /// On this machine.
        Local = "local",
        /// On a cluster, by the agent-sandbox controller.
        Kubernetes = "kubernetes"
    }
    /// The isolation that local sandboxes get.
    WantedIsolation {
        /// The strongest that works here.
        Auto = "auto",
        /// gVisor, or nothing.
        Gvisor = "gvisor",
        /// Namespaces, even where gVisor works.
        Namespaces = "namespaces"
    }
    /// Whether who connects to the gateway's door needs a certificate.
    ClientCertificates {
        /// Nobody is let in without one.
        Required = "required",
        /// One that is shown must be good.
        Optional = "optional"
    }
    /// What is done at start about tables that are not up to date.
    MigrateAtStart {
        /// They are brought up to date.
        Auto = "auto",
        /// Nothing is started.
        Check = "check"
    }
    /// How log lines look.
    LogFormatName {
        /// For people.
        Text = "text",
        /// For machines.
        Json = "json"
    }
}

impl Settings {
    /// The CPU time that compiling one filter may take.
    #[must_use]
    pub fn compile_cpu(&self) -> Duration {
        self.try_compile_cpu().unwrap_or_default()
    }

    /// The address space, in bytes, that compiling one filter may take.
    #[must_use]
    pub fn compile_memory(&self) -> u64 {
        self.try_compile_memory().unwrap_or_default().as_u64()
    }

    /// Reads every value once, so that what is wrong is found at start and all at once.
    pub(super) fn check(&self, mistakes: &mut Vec<SettingMistake>) {
        let mut see = |setting: &Setting, found: Result<(), String>| {
            if let (Err(message), Some(given)) = (found, self.given.get(setting.key)) {
                mistakes.push(SettingMistake { place: place(setting, given), message });
            }
        };
        see(name::TOKEN_SIGNING_KEY, self.signing_key().map(drop));
        see(name::TOKEN_OLD_KEYS, self.old_keys().map(drop));
        see(name::TOKEN_TTL, self.ttl().map(drop));
        see(name::MASTER_KEY, self.try_master_key().map(drop));
        see(name::STORAGE_BACKEND, self.parsed::<StorageKind>(name::STORAGE_BACKEND).map(drop));
        see(name::STORAGE_BACKEND, self.bucket_is_there());
        see(name::AZURE_CLOUD, self.parsed::<AzureCloud>(name::AZURE_CLOUD).map(drop));
        see(name::DATABASE_URL, self.database_scheme());
        see(name::MIGRATE, self.parsed::<MigrateAtStart>(name::MIGRATE).map(drop));
        see(name::BACKEND_URL, self.try_backend_url().map(drop));
        see(name::ISOLATION, self.parsed::<WantedIsolation>(name::ISOLATION).map(drop));
        see(name::RUNTIME, self.parsed::<RuntimeKind>(name::RUNTIME).map(drop));
        see(name::SANDBOX_CONTROL_KEY, self.key_of_32_bytes(name::SANDBOX_CONTROL_KEY).map(drop));
        see(name::SANDBOX_GATEWAY, self.try_url(name::SANDBOX_GATEWAY).map(drop));
        see(name::SANDBOX_GATEWAY_CA, self.comes_with(name::SANDBOX_GATEWAY));
        see(name::TENANT, self.parsed::<TenantId>(name::TENANT).map(drop));
        for setting in LISTENERS {
            see(setting, self.address(setting).map(drop));
        }
        for (setting, other) in
            [(name::GATEWAY_TLS_CERT, name::GATEWAY_TLS_KEY), (name::GATEWAY_TLS_KEY, name::GATEWAY_TLS_CERT)]
        {
            see(setting, self.comes_with(other));
        }
        see(name::GATEWAY_TLS_CLIENT_CA, self.comes_with(name::GATEWAY_TLS_CERT));
        let clients = self.parsed::<ClientCertificates>(name::GATEWAY_TLS_CLIENTS);
        see(name::GATEWAY_TLS_CLIENTS, clients.map(drop));
        see(name::TIMEOUT_CEILING, self.try_timeout_ceiling().map(drop));
        see(name::REQUEST_CEILING, self.parsed::<NonZeroU32>(name::REQUEST_CEILING).map(drop));
        see(name::MAX_MEMORY, self.size(name::MAX_MEMORY).map(drop));
        see(name::MAX_DISK, self.size(name::MAX_DISK).map(drop));
        see(name::MAX_CPU, self.cores().map(drop));
        see(name::MAX_PIDS, self.number(name::MAX_PIDS).map(drop));
        see(name::MAX_WARM_POOL, self.parsed::<u32>(name::MAX_WARM_POOL).map(drop));
        let life = Duration::from_secs(1)..=LONGEST_LIFE;
        see(name::MAX_SANDBOX_TTL, self.time(name::MAX_SANDBOX_TTL, life, "from 1s to 24h").map(drop));
        for setting in [name::KEEP_SANDBOXES, name::KEEP_EVENTS] {
            see(setting, self.kept(setting).map(drop));
        }
        see(name::FILES_API, self.try_files_api().map(drop));
        see(name::FILES_CACHE_SIZE, self.parsed::<ByteSize>(name::FILES_CACHE_SIZE).map(drop));
        see(name::FILES_CACHE_AGE, self.cache_age().map(drop));
        see(name::FILTER_COMPILE_CPU, self.try_compile_cpu().map(drop));
        see(name::FILTER_COMPILE_MEMORY, self.try_compile_memory().map(drop));
        see(name::GATEWAY_STALENESS, self.try_staleness().map(drop));
        see(name::GATEWAY_SPOOL, self.parsed::<ByteSize>(name::GATEWAY_SPOOL).map(drop));
        for setting in [name::GATEWAY_FAIL_CLOSED, name::GATEWAY_SOCKETS, name::INSECURE_LISTEN] {
            see(setting, self.switch(setting));
        }
        see(name::GATEWAY_CREDENTIAL, self.try_credential().map(drop));
        see(name::LOG_FORMAT, self.parsed::<LogFormatName>(name::LOG_FORMAT).map(drop));
        see(name::URL, self.try_url(name::URL).map(drop));
    }

    /// How session tokens are signed.
    #[must_use]
    pub fn token(&self) -> TokenSettings {
        TokenSettings {
            signing_key: self.signing_key().ok().flatten(),
            old_keys: self.old_keys().unwrap_or_default(),
            ttl: self.ttl().unwrap_or(MAX_TTL),
        }
    }

    /// The data key, if the operator gave one.
    #[must_use]
    pub fn master_key(&self) -> Option<Secret<Vec<u8>>> {
        self.try_master_key().ok().flatten()
    }

    /// Where users' files are kept.
    #[must_use]
    pub fn storage(&self) -> Storage {
        let kind = self.parsed(name::STORAGE_BACKEND).ok().flatten().unwrap_or(StorageKind::Local);
        Storage {
            kind,
            bucket: self.text(name::STORAGE_BUCKET).map(ToOwned::to_owned),
            azure_cloud: self.parsed(name::AZURE_CLOUD).ok().flatten().unwrap_or(AzureCloud::Public),
            credentials: self.clouds.clone(),
            cache: self.files_cache(),
        }
    }

    fn files_cache(&self) -> Option<FilesCache> {
        let bytes = self.bytes(name::FILES_CACHE_SIZE).filter(|bytes| *bytes > 0)?;
        // A server's name is nothing that files could be put under.
        let mounted = self.text(name::NFS_SERVER).map(PathBuf::from).filter(|path| path.is_absolute());
        let folder = self.text(name::FILES_CACHE).map(PathBuf::from);
        let folder = folder.or_else(|| mounted.map(|mounted| mounted.join("postern-cache")));
        Some(FilesCache { folder, bytes, age: self.cache_age().unwrap_or(LONGEST_KEPT) })
    }

    /// The backend of `BACKEND_URL`.
    #[must_use]
    pub fn backend_url(&self) -> Option<Url> {
        self.try_backend_url().ok().flatten()
    }

    /// What is done at start about tables that are not up to date, if somebody said so.
    #[must_use]
    pub fn migrate(&self) -> Option<MigrateAtStart> {
        self.parsed(name::MIGRATE).ok().flatten()
    }

    /// The isolation that local sandboxes get.
    #[must_use]
    pub fn isolation(&self) -> WantedIsolation {
        self.parsed(name::ISOLATION).ok().flatten().unwrap_or(WantedIsolation::Auto)
    }

    /// Where sandboxes are made.
    #[must_use]
    pub fn runtime(&self) -> RuntimeKind {
        self.parsed(name::RUNTIME).ok().flatten().unwrap_or(RuntimeKind::Local)
    }

    /// The seed of the key that signs what is said to pods.
    #[must_use]
    pub fn sandbox_control_key(&self) -> Option<Secret<Vec<u8>>> {
        self.key_of_32_bytes(name::SANDBOX_CONTROL_KEY).ok().flatten()
    }

    /// Where pods find the gateway.
    #[must_use]
    pub fn sandbox_gateway(&self) -> Option<Url> {
        self.try_url(name::SANDBOX_GATEWAY).ok().flatten()
    }

    /// What a template may ask for at most.
    #[must_use]
    pub fn sandbox_caps(&self) -> SandboxCaps {
        // Each was read once by `check`: what cannot be read is not there any more.
        let life = Duration::ZERO..=LONGEST_LIFE;
        SandboxCaps {
            memory: self.size(name::MAX_MEMORY).unwrap_or_default(),
            cpu: self.cores().unwrap_or_default(),
            pids: self.number(name::MAX_PIDS).unwrap_or_default(),
            disk: self.size(name::MAX_DISK).unwrap_or_default(),
            warm_pool: self.parsed(name::MAX_WARM_POOL).ok().flatten().unwrap_or_default(),
            ttl: self.time(name::MAX_SANDBOX_TTL, life, "").unwrap_or_default(),
        }
    }

    /// How long what is over is remembered.
    #[must_use]
    pub fn kept_times(&self) -> KeptTimes {
        KeptTimes {
            sandboxes: self.kept(name::KEEP_SANDBOXES).unwrap_or(LONGEST_KEPT),
            events: self.kept(name::KEEP_EVENTS).unwrap_or(LONGEST_KEPT),
        }
    }

    /// Whether the API and admin ports may listen off loopback without TLS.
    #[must_use]
    pub fn is_insecure_listen_allowed(&self) -> bool {
        self.parsed(name::INSECURE_LISTEN).ok().flatten().unwrap_or(false)
    }

    /// The settings when nobody says anything.
    fn unset() -> Self {
        Self {
            given: super::layers::layer(&super::Sources::default(), &mut Vec::new()),
            clouds: BTreeMap::new(),
        }
    }

    /// The tenant of the watched folder.
    ///
    /// # Errors
    /// None after [`Settings::resolve`]; the message is the one it gave.
    pub fn tenant(&self) -> Result<TenantId, String> {
        self.parsed(name::TENANT)?.ok_or_else(|| "no tenant is set".to_owned())
    }

    /// The address of one of the listeners; `None` where it is set to `off`.
    ///
    /// # Errors
    /// None after [`Settings::resolve`]; the message is the one it gave.
    pub fn address(&self, setting: &Setting) -> Result<Option<ListenAddress>, String> {
        match self.raw(setting) {
            None | Some("off") => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_malformed| {
                format!("`{text}` is no address: expected ADDRESS:PORT such as 127.0.0.1:8080, or `off`")
            }),
        }
    }

    /// A setting that is a path.
    #[must_use]
    pub fn path(&self, setting: &Setting) -> Option<PathBuf> {
        self.text(setting).map(PathBuf::from)
    }

    /// Where syncs' calls are brought, if they are.
    #[must_use]
    pub fn files_api(&self) -> Option<FilesAt> {
        self.try_files_api().ok().flatten()
    }

    /// A setting that is a list, separated by commas.
    #[must_use]
    pub fn list(&self, setting: &Setting) -> Vec<String> {
        let items = self.text(setting).unwrap_or_default().split(',').map(str::trim);
        items.filter(|item| !item.is_empty()).map(ToOwned::to_owned).collect()
    }

    /// The longest timeout that a tenant may set.
    #[must_use]
    pub fn timeout_ceiling(&self) -> Option<Duration> {
        self.try_timeout_ceiling().ok().flatten()
    }

    /// The most requests in flight that a tenant may set.
    #[must_use]
    pub fn request_ceiling(&self) -> Option<u32> {
        self.parsed::<NonZeroU32>(name::REQUEST_CEILING).ok().flatten().map(NonZeroU32::get)
    }

    /// How old a gateway's state may grow without an orchestrator.
    #[must_use]
    pub fn staleness(&self) -> Duration {
        self.try_staleness().unwrap_or_default()
    }

    /// A setting that is a size.
    #[must_use]
    pub fn bytes(&self, setting: &Setting) -> Option<u64> {
        self.parsed::<ByteSize>(setting).ok().flatten().map(|size| size.as_u64())
    }

    /// A setting that is `true` or `false`.
    #[must_use]
    pub fn flag(&self, setting: &Setting) -> bool {
        self.parsed(setting).ok().flatten().unwrap_or(false)
    }

    /// A gateway's own credential.
    #[must_use]
    pub fn gateway_credential(&self) -> Option<Credential> {
        self.try_credential().ok().flatten()
    }

    /// Whether who connects to the gateway's door needs a certificate, where there are authorities.
    #[must_use]
    pub fn client_certificates(&self) -> ClientCertificates {
        self.parsed(name::GATEWAY_TLS_CLIENTS).ok().flatten().unwrap_or(ClientCertificates::Required)
    }

    /// How log lines look.
    #[must_use]
    pub fn log_format(&self) -> LogFormat {
        match self.parsed(name::LOG_FORMAT) {
            Ok(Some(LogFormatName::Json)) => LogFormat::Json,
            _ => LogFormat::Text,
        }
    }

    /// The API that commands talk to.
    #[must_use]
    pub fn client_url(&self) -> Option<Url> {
        self.try_url(name::URL).ok().flatten()
    }

    fn parsed<T: FromStr<Err: ToString>>(&self, setting: &Setting) -> Result<Option<T>, String> {
        self.raw(setting).map(|text| text.parse().map_err(|error: T::Err| error.to_string())).transpose()
    }

    fn switch(&self, setting: &Setting) -> Result<(), String> {
        let parsed = self.parsed::<bool>(setting).map(drop);
        parsed.map_err(|_other| "is neither `true` nor `false`".to_owned())
    }

    fn size(&self, setting: &Setting) -> Result<ByteSize, String> {
        let text = self.raw(setting).unwrap_or_default();
        match text.parse::<ByteSize>() {
            Ok(size) if size.as_u64() > 0 => Ok(size),
            _ => Err(format!("`{text}` is no size: expected one such as `512MiB` or `8GiB`")),
        }
    }

    fn cores(&self) -> Result<f64, String> {
        let text = self.raw(name::MAX_CPU).unwrap_or_default();
        let number = text.parse::<f64>().ok().filter(|cores| cores.is_finite() && *cores > 0.0);
        number.ok_or_else(|| format!("`{text}` is no number of cores: expected one such as `0.5` or `4`"))
    }

    fn number(&self, setting: &Setting) -> Result<u32, String> {
        let text = self.raw(setting).unwrap_or_default();
        let number = text.parse::<u32>().ok().filter(|number| *number > 0);
        number.ok_or_else(|| format!("`{text}` is no number above 0"))
    }

    fn try_files_api(&self) -> Result<Option<FilesAt>, String> {
        let Some(text) = self.text(name::FILES_API) else { return Ok(None) };
        let path = text.strip_prefix("unix:").or_else(|| text.starts_with('/').then_some(text));
        if let Some(path) = path.filter(|path| !path.is_empty()) {
            return Ok(Some(FilesAt::Socket(path.into())));
        }
        let hosts = self.list(name::FILES_API);
        if !hosts.is_empty() && hosts.iter().all(|item| has_host_and_port(item)) {
            return Ok(Some(FilesAt::Hosts(hosts)));
        }
        Err(format!(
            "`{text}` is neither a socket's path (one that begins with `/`, or `unix:PATH`) nor HOST:PORT such as \
             orchestrator:8083"
        ))
    }

    fn cache_age(&self) -> Result<Duration, String> {
        const SHORTEST: Duration = Duration::from_secs(60 * 60);
        self.time(name::FILES_CACHE_AGE, SHORTEST..=LONGEST_KEPT, "from 1h to 36525d")
    }

    fn try_compile_cpu(&self) -> Result<Duration, String> {
        const RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);
        self.time(name::FILTER_COMPILE_CPU, RANGE, "from 1s to 10m")
    }

    fn try_compile_memory(&self) -> Result<ByteSize, String> {
        // A compiler that has less cannot begin.
        const LEAST: ByteSize = ByteSize::mib(128);
        match self.size(name::FILTER_COMPILE_MEMORY)? {
            size if size >= LEAST => Ok(size),
            size => Err(format!("{size} is out of range: at least {LEAST}")),
        }
    }

    fn kept(&self, setting: &Setting) -> Result<Duration, String> {
        self.time(setting, SHORTEST_KEPT..=LONGEST_KEPT, "from 1d to 36525d")
    }

    /// A duration, in which `d` is 24 hours.
    fn time(
        &self,
        setting: &Setting,
        range: RangeInclusive<Duration>,
        shown: &str,
    ) -> Result<Duration, String> {
        let text = self.raw(setting).unwrap_or_default();
        let days = SpanRelativeTo::days_are_24_hours();
        let time = text.parse::<Span>().and_then(|span| span.to_duration(days)).and_then(Duration::try_from);
        match time {
            Ok(time) if range.contains(&time) => Ok(time),
            Ok(_) => Err(format!("`{text}` is out of range: {shown}")),
            Err(_malformed) => {
                Err(format!("`{text}` is no duration: expected one such as `90s`, `1h` or `30d`"))
            }
        }
    }

    fn signing_key(&self) -> Result<Option<SigningKey>, String> {
        let key = |text: &str| SigningKey::new(text.as_bytes().to_vec()).map_err(|weak| weak.to_string());
        self.raw(name::TOKEN_SIGNING_KEY).map(key).transpose()
    }

    fn old_keys(&self) -> Result<Vec<SigningKey>, String> {
        let keys = self.raw(name::TOKEN_OLD_KEYS).unwrap_or_default().split(',').map(str::trim);
        let key = |text: &str| SigningKey::new(text.as_bytes().to_vec()).map_err(|weak| weak.to_string());
        keys.filter(|text| !text.is_empty()).map(key).collect()
    }

    fn ttl(&self) -> Result<Duration, String> {
        let Some(text) = self.raw(name::TOKEN_TTL) else { return Ok(MAX_TTL) };
        let malformed = |_error| format!("`{text}` is no duration: expected one such as `30m` or `1h`");
        let ttl: SignedDuration = text.parse().map_err(malformed)?;
        match Duration::try_from(ttl) {
            Ok(ttl) if (Duration::from_secs(60)..=MAX_TTL).contains(&ttl) => Ok(ttl),
            _ => Err(format!("`{text}` is out of range: from 1m to 1h")),
        }
    }

    fn try_timeout_ceiling(&self) -> Result<Option<Duration>, String> {
        let Some(text) = self.raw(name::TIMEOUT_CEILING) else { return Ok(None) };
        let malformed = |_error| format!("`{text}` is no duration: expected one such as `30s` or `10m`");
        let ceiling: SignedDuration = text.parse().map_err(malformed)?;
        match Duration::try_from(ceiling) {
            Ok(ceiling) if (Duration::from_secs(1)..=LONGEST_CEILING).contains(&ceiling) => Ok(Some(ceiling)),
            _ => Err(format!("`{text}` is out of range: from 1s to 24h")),
        }
    }

    fn try_staleness(&self) -> Result<Duration, String> {
        let Some(text) = self.raw(name::GATEWAY_STALENESS) else { return Ok(Duration::ZERO) };
        let malformed = |_error| format!("`{text}` is no duration: expected one such as `10s` or `5m`");
        let staleness: SignedDuration = text.parse().map_err(malformed)?;
        match Duration::try_from(staleness) {
            Ok(staleness) if (Duration::from_secs(2)..=MAX_TTL).contains(&staleness) => Ok(staleness),
            _ => Err(format!("`{text}` is out of range: from 2s to 1h")),
        }
    }

    fn try_credential(&self) -> Result<Option<Credential>, String> {
        self.raw(name::GATEWAY_CREDENTIAL)
            .map(|line| Credential::parse(line).map_err(|invalid| invalid.to_string()))
            .transpose()
    }

    fn try_master_key(&self) -> Result<Option<Secret<Vec<u8>>>, String> {
        self.key_of_32_bytes(name::MASTER_KEY)
    }

    fn key_of_32_bytes(&self, setting: &Setting) -> Result<Option<Secret<Vec<u8>>>, String> {
        let Some(text) = self.raw(setting) else { return Ok(None) };
        match STANDARD.decode(text.trim()) {
            Ok(bytes) if bytes.len() == 32 => Ok(Some(Secret::new(bytes))),
            _ => Err("is not 32 bytes in base64: make one with `openssl rand -base64 32`".to_owned()),
        }
    }

    /// A setting that means nothing without another.
    fn comes_with(&self, other: &Setting) -> Result<(), String> {
        match self.raw(other) {
            Some(_) => Ok(()),
            None => Err(format!("needs `{}`", other.variable)),
        }
    }

    fn bucket_is_there(&self) -> Result<(), String> {
        let kind = self.parsed::<StorageKind>(name::STORAGE_BACKEND).ok().flatten();
        match (kind, self.raw(name::STORAGE_BUCKET)) {
            (Some(kind), None) if kind != StorageKind::Local => {
                Err("needs `STORAGE_BUCKET`, the bucket or container of users' files".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn database_scheme(&self) -> Result<(), String> {
        let known = ["postgres://", "postgresql://", "sqlite:"];
        match self.raw(name::DATABASE_URL) {
            Some(text) if !known.iter().any(|scheme| text.starts_with(scheme)) => {
                Err("is neither `postgres://…` nor `sqlite://…`".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn try_backend_url(&self) -> Result<Option<Url>, String> {
        self.try_url(name::BACKEND_URL)
    }

    fn try_url(&self, setting: &Setting) -> Result<Option<Url>, String> {
        let Some(url) = self.parsed::<Url>(setting)? else { return Ok(None) };
        match (url.scheme(), url.host_str()) {
            ("http" | "https", Some(_)) if url.username().is_empty() && url.password().is_none() => {
                Ok(Some(url))
            }
            _ => Err("wants `http://HOST…` or `https://HOST…`, without user or password".to_owned()),
        }
    }
}

/// The settings that are addresses.
const LISTENERS: [&Setting; 5] = [
    name::API_LISTEN,
    name::API_ADMIN_LISTEN,
    name::GATEWAY_LISTEN,
    name::GATEWAY_ADMIN_LISTEN,
    name::CONTROL_LISTEN,
];

/// Whether it is `HOST:PORT`, where an IPv6 address stands in brackets.
fn has_host_and_port(item: &str) -> bool {
    let Some((host, port)) = item.rsplit_once(':') else { return false };
    let is_host = !host.is_empty() && !host.contains('/');
    let is_closed = !host.contains(':') || (host.starts_with('[') && host.ends_with(']'));
    is_host && is_closed && port.parse::<u16>().is_ok()
}

/// What the reader has to change: the variable, the line, or the flag.
fn place(setting: &Setting, given: &Given) -> String {
    match &given.origin {
        super::Origin::Flag => format!("--{}", setting.key.replace(['.', '_'], "-")),
        super::Origin::Variable(name) => name.clone(),
        origin => format!("{} ({origin})", setting.key),
    }
}
