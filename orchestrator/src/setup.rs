// SPDX-License-Identifier: Apache-2.0
//! What an installation in a cluster needs once, before its programs run: keys that nobody gave,
//! the first admin key, and its gateways' credential. Each ends up in a Secret.
//!
//! What is there is never written over, so that this may run before every install and upgrade:
//!
//! ```text
//!  keys     Secret is there? ─yes─▶ does it hold what is wanted? ─▶ done, or told what is missing
//!                            ─no──▶ made at random ─▶ created; who comes second keeps the first's
//!  access   Secret is there? ─yes─▶ does the database know its credential? ─▶ done, or told
//!                            ─no──▶ would it be taken? ─▶ written down in the database ─▶ created
//! ```

mod cluster;

pub use cluster::{Cluster, ClusterError};

use crate::keys::api::{WantedKey, mint};
use crate::keys::{KeysError, random};
use crate::orchestrator::Prepared;
use crate::seal::SealError;
use crate::store::{Action, Actor, AuditEntry, KeyScope, OpenError, Role, Store, StoreError};
use crate::stream::{self, AddGatewayError, AuthorityError};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use postern_common::clock;
use postern_common::id::GatewayName;
use postern_common::secret::Secret;
use postern_common::settings::{Setting, name};
use postern_common::stream::Credential;
use std::collections::BTreeMap;

/// Bytes of a token signing key: more than its hash has are of no use, text of 64 characters is.
const TOKEN_BYTES: usize = 48;
/// Bytes of the data key, and of the seed of what signs orders to sandboxes.
const KEY_BYTES: usize = 32;
/// Bytes of a database's password.
const PASSWORD_BYTES: usize = 24;
/// The embedded database's user, and its database.
const DATABASE_NAME: &str = "postern";
/// Where the password is for the database itself.
const PASSWORD: &str = "POSTGRES_PASSWORD";
/// Where the first admin key is, beside the gateways' credential.
const ADMIN_KEY: &str = "POSTERN_API_KEY";

/// What a Secret holds.
pub type Entries = BTreeMap<String, Secret<String>>;

/// A key that can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// `TOKEN_SIGNING_KEY`.
    TokenSigning,
    /// `POSTERN_MASTER_KEY`.
    Master,
    /// `POSTERN_SANDBOX_CONTROL_KEY`.
    SandboxControl,
    /// `DATABASE_URL` of the embedded database, with its password.
    Database,
}

impl Key {
    const ALL: [Self; 4] = [Self::TokenSigning, Self::Master, Self::SandboxControl, Self::Database];

    const fn setting(self) -> &'static Setting {
        match self {
            Self::TokenSigning => name::TOKEN_SIGNING_KEY,
            Self::Master => name::MASTER_KEY,
            Self::SandboxControl => name::SANDBOX_CONTROL_KEY,
            Self::Database => name::DATABASE_URL,
        }
    }
}

impl std::str::FromStr for Key {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.map(|key| key.setting().variable);
        let found = Self::ALL.into_iter().find(|key| key.setting().variable == text);
        found.ok_or_else(|| format!("`{text}` cannot be made; there are {}", known.join(", ")))
    }
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was made.
    Made,
    /// It was there, and is as it was.
    WasThere,
}

/// It could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A Secret that lacks something.
    #[error(
        "Secret `{secret}` is there without {missing}, and what is there is never changed: add what is \
         missing (`kubectl edit secret {secret}`), or name another Secret that has it"
    )]
    Lacks {
        /// Which.
        secret: String,
        /// What it lacks.
        missing: String,
    },
    /// No embedded database was named.
    #[error("DATABASE_URL can be made for the embedded database only: name it with --database HOST:PORT")]
    NoDatabase,
    /// A Secret with a credential that cannot be read.
    #[error(
        "Secret `{secret}` holds no credential of gateway `{gateway}`: delete the Secret and run this again"
    )]
    NoCredential {
        /// Which.
        secret: String,
        /// Whose.
        gateway: GatewayName,
    },
    /// A credential that the database does not know.
    #[error(
        "the database does not know the credential in Secret `{secret}`: it was revoked, or another database \
         was restored. To have a new one, delete the Secret and run this again"
    )]
    Unknown {
        /// Which.
        secret: String,
    },
    /// Somebody was faster.
    #[error("Secret `{secret}` appeared meanwhile: delete it, and run this again alone")]
    Twice {
        /// Which.
        secret: String,
    },
    /// The cluster.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// Keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The control stream's authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

impl From<SealError> for SetupError {
    fn from(error: SealError) -> Self {
        Self::Keys(error.into())
    }
}

/// Brings the tables of the database at `url` up to date.
///
/// # Errors
/// [`OpenError`] says what to mend.
pub async fn migrate(url: &Secret<String>) -> Result<(), OpenError> {
    Store::open(url).await?.close().await;
    Ok(())
}

/// Makes the keys that are wanted and puts them into `secret`, unless it is there.
///
/// # Errors
/// [`SetupError`].
pub async fn keys(
    cluster: &Cluster,
    secret: &str,
    wanted: &[Key],
    database: Option<&str>,
) -> Result<Outcome, SetupError> {
    if let Some(there) = cluster.secret(secret).await? {
        return complete(secret, &there, wanted);
    }
    if cluster.create_secret(secret, &make(wanted, database)?, Dry::No).await? {
        return Ok(Outcome::Made);
    }
    let there = cluster.secret(secret).await?.unwrap_or_default();
    complete(secret, &there, wanted)
}

/// Tells sandboxes whose orders to believe: writes the public half of the key that signs them into
/// `config_map`, beside their pods. It is no secret, and follows the key.
///
/// # Errors
/// [`SetupError`].
pub async fn control_key(cluster: &Cluster, config_map: &str, public: &str) -> Result<(), SetupError> {
    Ok(cluster.put_config_map(config_map, "public", public).await?)
}

/// Whether something is only tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dry {
    /// It is tried, and leaves nothing.
    Run,
    /// It is done.
    No,
}

fn complete(secret: &str, there: &Entries, wanted: &[Key]) -> Result<Outcome, SetupError> {
    let settings = wanted.iter().map(|key| key.setting().variable);
    let missing: Vec<_> = settings.filter(|setting| !there.contains_key(*setting)).collect();
    if missing.is_empty() {
        return Ok(Outcome::WasThere);
    }
    Err(SetupError::Lacks { secret: secret.to_owned(), missing: missing.join(", ") })
}

fn make(wanted: &[Key], database: Option<&str>) -> Result<Entries, SetupError> {
    let mut made = Entries::new();
    let mut put = |name: &str, text: String| drop(made.insert(name.to_owned(), Secret::new(text)));
    for key in wanted {
        let variable = key.setting().variable;
        match key {
            Key::TokenSigning => put(variable, URL_SAFE_NO_PAD.encode(random(TOKEN_BYTES)?.reveal())),
            Key::Master | Key::SandboxControl => put(variable, STANDARD.encode(random(KEY_BYTES)?.reveal())),
            Key::Database => {
                let at = database.ok_or(SetupError::NoDatabase)?;
                let password = URL_SAFE_NO_PAD.encode(random(PASSWORD_BYTES)?.reveal());
                put(variable, format!("postgres://{DATABASE_NAME}:{password}@{at}/{DATABASE_NAME}"));
                put(PASSWORD, password);
            }
        }
    }
    Ok(made)
}

/// Makes the first admin key and the credential of the gateways that are called `gateway`, and puts
/// both into `secret`, unless it is there.
///
/// A gateway of that name whose Secret is gone loses its old credential.
///
/// # Errors
/// [`SetupError`].
pub async fn access(
    prepared: &Prepared,
    cluster: &Cluster,
    secret: &str,
    gateway: &GatewayName,
) -> Result<Outcome, SetupError> {
    let (store, keys) = prepared.parts();
    if let Some(there) = cluster.secret(secret).await? {
        let line = there.get(name::GATEWAY_CREDENTIAL.variable).map(|line| line.reveal().as_str());
        let credential = line.and_then(|line| Credential::parse(line).ok());
        let credential = credential.filter(|credential| credential.name == *gateway).ok_or_else(|| {
            SetupError::NoCredential { secret: secret.to_owned(), gateway: gateway.clone() }
        })?;
        if !stream::believes(store, keys, gateway, &credential.secret).await? {
            return Err(SetupError::Unknown { secret: secret.to_owned() });
        }
        return Ok(Outcome::WasThere);
    }
    // What the cluster would refuse leaves no trace in the database.
    cluster.create_secret(secret, &Entries::new(), Dry::Run).await?;
    let entries = Entries::from([
        (name::GATEWAY_CREDENTIAL.variable.to_owned(), credential(prepared, gateway).await?),
        (ADMIN_KEY.to_owned(), admin_key(prepared).await?),
    ]);
    if cluster.create_secret(secret, &entries, Dry::No).await? {
        Ok(Outcome::Made)
    } else {
        Err(SetupError::Twice { secret: secret.to_owned() })
    }
}

async fn credential(prepared: &Prepared, gateway: &GatewayName) -> Result<Secret<String>, SetupError> {
    let (store, keys) = prepared.parts();
    let entry = |action| {
        AuditEntry::new(clock::now(), None, action, Actor::Orchestrator).subject(format!("gateway/{gateway}"))
    };
    store.remove_gateway(gateway, &entry(Action::GatewayRevoked)).await?;
    let issuer = stream::CredentialIssuer::open(store, keys).await?;
    let added = issuer
        .add(store, keys, gateway, Actor::Orchestrator.to_string(), &entry(Action::GatewayAdded))
        .await
        .map_err(|error| match error {
            AddGatewayError::Random(error) => SetupError::from(error),
            AddGatewayError::Store(error) => SetupError::from(error),
        })?;
    // Removed right before: there is one again only if somebody else made it in between.
    added.map(|(_row, line)| line).ok_or_else(|| SetupError::Twice { secret: gateway.to_string() })
}

async fn admin_key(prepared: &Prepared) -> Result<Secret<String>, SetupError> {
    let (store, keys) = prepared.parts();
    let now = clock::now();
    let wanted = WantedKey {
        tenant: None,
        role: Role::Admin,
        label: "first admin key".to_owned(),
        operations: None,
        scope: KeyScope::default(),
        created_by: Actor::Orchestrator.to_string(),
    };
    let minted = mint(keys, wanted, now)?;
    let audit = AuditEntry::new(now, None, Action::KeyCreated, Actor::Orchestrator);
    store.add_key(&minted.row, &audit.subject(format!("key/{}", minted.row.id))).await?;
    Ok(minted.key)
}

#[cfg(test)]
mod tests;
