// SPDX-License-Identifier: Apache-2.0
//! Connects to the store of objects that the operator chose.
//!
//! Credentials are those of each service's own tools, under the same names: `AWS_*`, `AZURE_*`,
//! `GOOGLE_*`. Where none is given, the machine's own identity is asked for (workload identity, the
//! service of instance metadata). `main` hands the variables in; nothing here reads the environment.

use super::StorageObjects;
use super::cache::{Cache, CacheBounds};
use super::cloud::{Cloud, Connected, Service};
use super::folder::{self, Folder};
use super::objects::Objects;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::signer::Signer;
use object_store::{BackoffConfig, ClientConfigKey, ClientOptions, ObjectStore, RetryConfig};
use postern_common::secret::Secret;
use postern_common::settings::{AzureCloud, Storage as Chosen, StorageKind};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use url::Url;

/// A service that takes longer to be connected to is away.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// A service that is silent for longer is away.
const SILENT_TIME: Duration = Duration::from_secs(30);
/// How long a request is tried again, with pauses that grow and are drawn by lot.
const RETRY_TIME: Duration = Duration::from_secs(30);
const RETRIES: usize = 6;
/// Files of a cache: what looking through it holds is some hundred bytes of each.
const CACHED_FILES: u64 = 500_000;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Connections that are kept open: as many as there are requests at the same time.
const KEPT_CONNECTIONS: usize = 64;

/// Which store, and where the local one lies.
#[derive(Debug, Clone)]
pub(crate) struct StorageSettings {
    /// What the operator chose.
    pub(crate) chosen: Chosen,
    /// The folder of this installation.
    pub(crate) data_dir: PathBuf,
}

/// The store could not be connected to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The folder of the local store.
    #[error("could not use `{}` for users' files; choose another with STORAGE_BUCKET or mend it", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The folder of the cache.
    #[error("could not use `{}` for the cache of users' files; choose another with POSTERN_FILES_CACHE, or \
             none with POSTERN_FILES_CACHE_SIZE=0", path.display())]
    Cache {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Settings that do not fit together.
    #[error("the store of users' files cannot be set up: {0}")]
    Settings(String),
    /// The variables lack something.
    #[error("the variables {names} do not give access to `{bucket}`: {why}")]
    Credentials {
        /// Where credentials are looked for.
        names: &'static str,
        /// The bucket.
        bucket: String,
        /// What is wrong, without any credential.
        why: String,
    },
}

impl StorageSettings {
    /// Where the local store lies.
    #[must_use]
    pub(crate) fn local_folder(&self) -> PathBuf {
        let chosen = self.chosen.bucket.as_ref().filter(|_| self.chosen.kind == StorageKind::Local);
        chosen.map_or_else(|| folder::usual(&self.data_dir), PathBuf::from)
    }

    /// Opens the cache of this machine; `None` if there is to be none.
    ///
    /// # Errors
    /// [`ConnectError`] says what to mend.
    pub(crate) fn cache(&self) -> Result<Option<Cache>, ConnectError> {
        let Some(wanted) = &self.chosen.cache else { return Ok(None) };
        let path = wanted.folder.clone().unwrap_or_else(|| self.data_dir.join("cache"));
        let bounds = CacheBounds { bytes: wanted.bytes, files: CACHED_FILES, age: wanted.age };
        let opened = Cache::open(&path, bounds);
        opened.map(Some).map_err(|source| ConnectError::Cache { path, source })
    }

    /// Opens the store. Nothing is asked of a service yet.
    ///
    /// # Errors
    /// [`ConnectError`] says what to mend.
    pub(crate) fn connect(&self) -> Result<StorageObjects, ConnectError> {
        let connected = match self.chosen.kind {
            StorageKind::Local => return local(&self.local_folder()),
            StorageKind::S3 => s3(&self.chosen)?,
            StorageKind::Azure => azure(&self.chosen)?,
            StorageKind::Gcs => gcs(&self.chosen)?,
        };
        Ok(StorageObjects(Objects::Cloud(Cloud::new(connected))))
    }
}

fn local(path: &Path) -> Result<StorageObjects, ConnectError> {
    let opened = Folder::open(path);
    let opened = opened.map_err(|source| ConnectError::Folder { path: path.to_owned(), source })?;
    Ok(StorageObjects(Objects::Folder(opened)))
}

fn s3(chosen: &Chosen) -> Result<Connected, ConnectError> {
    let bucket = bucket(chosen)?;
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&bucket)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_retry(retries());
    let mut endpoint = None;
    for (name, value) in &chosen.credentials {
        if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
            match key {
                AmazonS3ConfigKey::Bucket | AmazonS3ConfigKey::Client(_) => continue,
                AmazonS3ConfigKey::Endpoint | AmazonS3ConfigKey::S3Endpoint => {
                    endpoint = Some(value.reveal().clone());
                }
                _ => {}
            }
            builder = builder.with_config(key, value.reveal());
        }
    }
    let options = options(endpoint.as_deref())?;
    let store = builder.with_client_options(options).build();
    let store = Arc::new(store.map_err(|error| refused("AWS_*", &bucket, &error, chosen))?);
    Ok(connected(Service::S3, store, chosen, true))
}

fn azure(chosen: &Chosen) -> Result<Connected, ConnectError> {
    let bucket = bucket(chosen)?;
    let mut builder = MicrosoftAzureBuilder::new().with_container_name(&bucket).with_retry(retries());
    let (mut endpoint, mut account, mut can_sign) = (None, None, true);
    for (name, value) in &chosen.credentials {
        let Ok(key) = azure_key(name) else { continue };
        match key {
            AzureConfigKey::ContainerName | AzureConfigKey::Client(_) => continue,
            AzureConfigKey::Endpoint => endpoint = Some(value.reveal().clone()),
            AzureConfigKey::AccountName => account = Some(value.reveal().clone()),
            // Who has a signature only cannot sign.
            AzureConfigKey::SasKey | AzureConfigKey::Token => can_sign = false,
            _ => {}
        }
        builder = builder.with_config(key, value.reveal());
    }
    if chosen.azure_cloud == AzureCloud::Government {
        let account = account.ok_or_else(|| {
            ConnectError::Settings(
                "POSTERN_AZURE_CLOUD=government needs AZURE_STORAGE_ACCOUNT_NAME".to_owned(),
            )
        })?;
        let at = endpoint.unwrap_or_else(|| format!("https://{account}.blob.core.usgovcloudapi.net"));
        builder = builder.with_authority_host(object_store::azure::authority_hosts::AZURE_GOVERNMENT);
        builder = builder.with_endpoint(at.clone());
        endpoint = Some(at);
    }
    let options = options(endpoint.as_deref())?;
    let store = builder.with_client_options(options).build();
    let store = Arc::new(store.map_err(|error| refused("AZURE_*", &bucket, &error, chosen))?);
    Ok(connected(Service::Azure, store, chosen, can_sign))
}

/// Azure's own tools know these names, the crate does not.
fn azure_key(name: &str) -> Result<AzureConfigKey, object_store::Error> {
    match name {
        "AZURE_STORAGE_KEY" => Ok(AzureConfigKey::AccessKey),
        "AZURE_STORAGE_ACCOUNT" => Ok(AzureConfigKey::AccountName),
        _ => name.to_ascii_lowercase().parse(),
    }
}

fn gcs(chosen: &Chosen) -> Result<Connected, ConnectError> {
    let bucket = bucket(chosen)?;
    let mut builder = GoogleCloudStorageBuilder::new().with_bucket_name(&bucket).with_retry(retries());
    let mut endpoint = None;
    for (name, value) in &chosen.credentials {
        if let Ok(key) = name.to_ascii_lowercase().parse::<GoogleConfigKey>() {
            match key {
                GoogleConfigKey::Bucket | GoogleConfigKey::Client(_) => continue,
                GoogleConfigKey::BaseUrl => endpoint = Some(value.reveal().clone()),
                _ => {}
            }
            builder = builder.with_config(key, value.reveal());
        }
    }
    let options = options(endpoint.as_deref())?;
    let store = builder.with_client_options(options).build();
    let store = Arc::new(store.map_err(|error| refused("GOOGLE_*", &bucket, &error, chosen))?);
    Ok(connected(Service::Gcs, store, chosen, true))
}

fn connected<Store: ObjectStore + Signer>(
    service: Service,
    store: Arc<Store>,
    chosen: &Chosen,
    can_sign: bool,
) -> Connected {
    let signer = can_sign.then(|| Arc::clone(&store) as Arc<dyn Signer>);
    Connected { service, store, signer, secrets: secrets(chosen) }
}

fn bucket(chosen: &Chosen) -> Result<String, ConnectError> {
    let missing = || ConnectError::Settings("STORAGE_BUCKET is not set".to_owned());
    chosen.bucket.clone().ok_or_else(missing)
}

/// What must never be shown: every value that is not plainly something else.
fn secrets(chosen: &Chosen) -> Vec<Secret<String>> {
    const SHORTEST: usize = 8;
    let is_secret = |name: &str| {
        ["KEY", "SECRET", "TOKEN", "SAS", "PASSWORD"].iter().any(|word| name.contains(word))
            && !name.ends_with("_FILE")
    };
    let found = chosen.credentials.iter().filter(|(name, _)| is_secret(name));
    found.map(|(_, value)| value.clone()).filter(|value| value.reveal().len() >= SHORTEST).collect()
}

fn refused(names: &'static str, bucket: &str, error: &object_store::Error, chosen: &Chosen) -> ConnectError {
    let why = super::cloud::clean(&error.to_string(), &secrets(chosen));
    ConnectError::Credentials { names, bucket: bucket.to_owned(), why }
}

fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig { init_backoff: FIRST_PAUSE, max_backoff: LONGEST_PAUSE, base: 2.0 },
        max_retries: RETRIES,
        retry_timeout: RETRY_TIME,
    }
}

/// How a service is spoken to. Without TLS only on this machine, where tests run one.
fn options(endpoint: Option<&str>) -> Result<ClientOptions, ConnectError> {
    let options = ClientOptions::new()
        .with_connect_timeout(CONNECT_TIME)
        .with_timeout_disabled()
        .with_config(ClientConfigKey::ReadTimeout, format!("{} s", SILENT_TIME.as_secs()))
        .with_pool_max_idle_per_host(KEPT_CONNECTIONS);
    let Some(endpoint) = endpoint else { return Ok(options) };
    let wrong = |why: &str| ConnectError::Settings(format!("the endpoint `{endpoint}` {why}"));
    let url = Url::parse(endpoint).map_err(|_malformed| wrong("is no URL"))?;
    match (url.scheme(), url.host()) {
        ("https", Some(_)) => Ok(options),
        ("http", Some(host)) if is_loopback(&host) => Ok(options.with_allow_http(true)),
        ("http", Some(_)) => Err(wrong("is not encrypted: use https://, http:// is for this machine alone")),
        _ => Err(wrong("is neither https:// nor http://")),
    }
}

fn is_loopback(host: &url::Host<&str>) -> bool {
    match host {
        url::Host::Ipv4(address) => address.is_loopback(),
        url::Host::Ipv6(address) => address.is_loopback(),
        url::Host::Domain(name) => *name == "localhost",
    }
}
