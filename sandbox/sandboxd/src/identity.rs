// SPDX-License-Identifier: Apache-2.0
//! Whose sandbox this is: told once over the control channel, never by the agent.
//!
//! A warm sandbox has no identity until it is claimed. One that was given can not be changed;
//! only the session token is replaced when it is rotated.
//!
//! A sandbox whose memory is about to be kept is put to *sleep*: it forgets its token, all processes
//! stand still and the door waits. It goes on with a token (in place) or with an identity (restored,
//! perhaps as another sandbox), and not before it has that. Where a template wants the token in a file too
//! (`token_file`), that is gone while it sleeps and has the new one before anything goes on.

use crate::connect::{Code, Failure};
use crate::still::{self, Stopped};
use crate::token_file;
use http::HeaderValue;
use postern_common::id::{ConversationId, SandboxId};
use postern_common::secret::Secret;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// The agent's way out, as it finds it in its environment (contracts.md).
const GATEWAY_URL: &str = "http://127.0.0.1:49980";
/// What a shell of a fresh Debian user has, without the folders of the administrator.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// How long the door keeps a request that comes before a sandbox that wakes has its token.
const WAKE_TIME: Duration = Duration::from_secs(30);

/// The body of `postern.Control/Identify`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Claim {
    sandbox_id: SandboxId,
    conversation_id: ConversationId,
    #[serde(deserialize_with = "secret")]
    token: Secret<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Where the gateway is, if not at this sandbox's own socket.
    #[serde(default)]
    gateway: Option<Gateway>,
}

/// A gateway that is reached over the network.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Gateway {
    /// An address, for there are no names to be asked for in here.
    pub(crate) address: std::net::SocketAddr,
    /// What its certificate says; absent where it speaks plain HTTP.
    #[serde(default)]
    pub(crate) tls: Option<GatewayTls>,
}

/// How a gateway is known.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GatewayTls {
    /// The name in its certificate.
    pub(crate) name: String,
    /// Who signs that, in PEM.
    pub(crate) ca: String,
}

/// The body of `postern.Control/Token`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rotation {
    #[serde(deserialize_with = "secret")]
    token: Secret<String>,
}

/// The identity of this sandbox, once it has one.
#[derive(Debug, Default)]
pub(crate) struct Identity {
    env: Mutex<Option<BTreeMap<String, String>>>,
    gateway: OnceLock<Gateway>,
    bearer: Mutex<Option<HeaderValue>>,
    is_asleep: watch::Sender<bool>,
    stopped: Mutex<Stopped>,
    /// Whether nothing ran any more when it was put to sleep.
    stands_still: AtomicBool,
}

impl Identity {
    /// Takes the identity.
    ///
    /// # Errors
    /// `failed_precondition` if there is one already, unless it sleeps; `invalid_argument` for a
    /// malformed one, which changes nothing.
    pub(crate) fn claim(&self, claim: Claim) -> Result<(), Failure> {
        let bearer = bearer(&claim.token)?;
        if let Some(name) =
            claim.env.iter().find_map(|(name, value)| is_unusable(name, value).then_some(name))
        {
            let detail = format!("`{}` cannot be an environment variable", name.escape_default());
            return Err(Failure::new(Code::InvalidArgument, detail));
        }
        let mut env = claim.env;
        env.insert("SANDBOX_ID".into(), claim.sandbox_id.as_str().into());
        env.insert("CONVERSATION_ID".into(), claim.conversation_id.as_str().into());
        env.insert("GATEWAY_URL".into(), GATEWAY_URL.into());
        let again = |()| Failure::new(Code::FailedPrecondition, "this sandbox already has an identity");
        if self.env().is_ok() && !self.is_asleep() {
            return Err(again(()));
        }
        if let Some(gateway) = claim.gateway {
            crate::door::is_usable(&gateway).map_err(|why| Failure::new(Code::InvalidArgument, why))?;
            self.gateway.set(gateway).map_err(|_set| again(()))?;
        }
        *self.env.lock().unwrap_or_else(PoisonError::into_inner) = Some(env);
        self.replace(bearer, &claim.token);
        Ok(())
    }

    /// Has everything in here stand still and the door wait, without a token, until there is one.
    ///
    /// # Errors
    /// `resource_exhausted` if there is always one more process that runs; it sleeps all the same.
    pub(crate) async fn sleep(&self) -> Result<(), Failure> {
        if self.is_asleep.send_replace(true) && self.stands_still.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.bearer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (stopped, all) = still::stop_all().await;
        self.stands_still.store(all, Ordering::Relaxed);
        if self.is_asleep() {
            // Nothing runs any more that would miss it.
            if let Some(path) = self.token_file() {
                token_file::remove(&path);
            }
            self.stopped.lock().unwrap_or_else(PoisonError::into_inner).add(stopped);
        } else {
            // It was woken meanwhile.
            stopped.go_on();
        }
        let restless = "there are processes that do not stand still";
        if all { Ok(()) } else { Err(Failure::new(Code::ResourceExhausted, restless)) }
    }

    /// Whether everything in here sleeps.
    pub(crate) fn is_asleep(&self) -> bool {
        *self.is_asleep.borrow()
    }

    /// Resolves when it is put to sleep.
    pub(crate) async fn falls_asleep(&self) {
        // The sender lives as long as we do.
        let _ = self.is_asleep.subscribe().wait_for(|is_asleep| *is_asleep).await.is_ok();
    }

    /// What the door writes into `Authorization`, once nothing sleeps any more.
    pub(crate) async fn bearer_when_awake(&self) -> Option<HeaderValue> {
        let mut sleep = self.is_asleep.subscribe();
        let awake = tokio::time::timeout(WAKE_TIME, sleep.wait_for(|is_asleep| !is_asleep)).await;
        awake.ok().and_then(|_awake| self.bearer())
    }

    /// Where the gateway is, if the identity said so.
    pub(crate) fn gateway(&self) -> Option<&Gateway> {
        self.gateway.get()
    }

    /// Takes the session's next token.
    ///
    /// # Errors
    /// `failed_precondition` before there is an identity; `invalid_argument` for a malformed one.
    pub(crate) fn rotate(&self, rotation: &Rotation) -> Result<(), Failure> {
        let bearer = bearer(&rotation.token)?;
        self.env()?;
        self.replace(bearer, &rotation.token);
        Ok(())
    }

    /// The environment of every process that is started here, without what its own start adds.
    ///
    /// # Errors
    /// `failed_precondition` before there is an identity, `unavailable` while it sleeps.
    pub(crate) fn environment(&self, home: &str) -> Result<BTreeMap<String, String>, Failure> {
        let mut env = BTreeMap::from([
            ("PATH".to_owned(), PATH.to_owned()),
            ("HOME".to_owned(), home.to_owned()),
            ("USER".to_owned(), "user".to_owned()),
        ]);
        env.extend(self.env()?);
        if self.is_asleep() {
            return Err(Failure::new(Code::Unavailable, "this sandbox sleeps"));
        }
        Ok(env)
    }

    /// What the door writes into `Authorization`.
    pub(crate) fn bearer(&self) -> Option<HeaderValue> {
        self.bearer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn env(&self) -> Result<BTreeMap<String, String>, Failure> {
        let missing = || Failure::new(Code::FailedPrecondition, "this sandbox has no identity yet");
        self.env.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(missing)
    }

    /// Where the token lies for the agent, if it does.
    fn token_file(&self) -> Option<PathBuf> {
        self.env().ok()?.get(token_file::VARIABLE).map(PathBuf::from)
    }

    /// INVARIANT: what sleeps goes on last, when the token is there.
    fn replace(&self, bearer: HeaderValue, token: &Secret<String>) {
        if let Some(path) = self.token_file() {
            // The agent may have spoilt the place, and then has no file.
            let _ = token_file::replace(&path, token.reveal()).is_ok();
        }
        *self.bearer.lock().unwrap_or_else(PoisonError::into_inner) = Some(bearer);
        self.stands_still.store(false, Ordering::Relaxed);
        if self.is_asleep.send_replace(false) {
            std::mem::take(&mut *self.stopped.lock().unwrap_or_else(PoisonError::into_inner)).go_on();
        }
    }
}

fn secret<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Secret<String>, D::Error> {
    String::deserialize(from).map(Secret::new)
}

fn bearer(token: &Secret<String>) -> Result<HeaderValue, Failure> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.reveal()))
        .map_err(|_invalid| Failure::new(Code::InvalidArgument, "the token cannot be sent in a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The kernel cannot hold such a variable.
fn is_unusable(name: &str, value: &str) -> bool {
    name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(id: &str, token: &str) -> Claim {
        let json = serde_json::json!({ "sandbox_id": id, "conversation_id": "c1", "token": token });
        serde_json::from_value(json).expect("a claim")
    }

    fn rotation(token: &str) -> Rotation {
        serde_json::from_value(serde_json::json!({ "token": token })).expect("a rotation")
    }

    const FIRST: &str = "sandbox-aaaaaaaaaaaa";
    const SECOND: &str = "sandbox-bbbbbbbbbbbb";

    #[tokio::test]
    async fn an_identity_is_given_once_but_to_what_sleeps() {
        let identity = Identity::default();
        identity.claim(claim(FIRST, "one")).expect("is taken");
        assert!(identity.claim(claim(SECOND, "two")).is_err(), "it has one");
        identity.sleep().await.expect("sleeps");
        assert!(identity.bearer().is_none(), "what sleeps holds no token");
        assert!(identity.environment("/home/user").is_err(), "nothing is started in it");
        identity.claim(claim(SECOND, "two")).expect("is taken");
        let environment = identity.environment("/home/user").expect("is awake");
        assert_eq!(environment["SANDBOX_ID"], SECOND);
        assert_eq!(identity.bearer().expect("has one").to_str().ok(), Some("Bearer two"));
        assert!(identity.claim(claim(FIRST, "three")).is_err(), "it has one again");
    }

    #[tokio::test]
    async fn a_malformed_claim_does_not_wake_it() {
        let identity = Identity::default();
        identity.claim(claim(FIRST, "one")).expect("is taken");
        identity.sleep().await.expect("sleeps");
        assert!(identity.claim(claim(SECOND, "two\n")).is_err());
        assert!(identity.is_asleep() && identity.bearer().is_none());
        identity.rotate(&rotation("three")).expect("a token is enough to go on");
        assert!(!identity.is_asleep());
        assert_eq!(identity.environment("/").expect("is awake")["SANDBOX_ID"], FIRST);
    }

    /// A claim of a template that wants the token in this file.
    fn claim_with_file(id: &str, token: &str, path: &std::path::Path) -> Claim {
        let env = serde_json::json!({ "SANDBOX_TOKEN_FILE": path });
        let json =
            serde_json::json!({ "sandbox_id": id, "conversation_id": "c1", "token": token, "env": env });
        serde_json::from_value(json).expect("a claim")
    }

    #[tokio::test]
    async fn a_token_file_has_the_token_of_now_and_what_sleeps_has_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        let read = || std::fs::read_to_string(&path).ok();
        let identity = Identity::default();
        identity.claim(claim_with_file(FIRST, "one", &path)).expect("is taken");
        assert_eq!(read().as_deref(), Some("one"));
        identity.rotate(&rotation("two")).expect("is taken");
        assert_eq!(read().as_deref(), Some("two"), "rotated");
        identity.sleep().await.expect("sleeps");
        assert_eq!(read(), None, "no picture holds it");
        identity.rotate(&rotation("three")).expect("is taken");
        assert_eq!(read().as_deref(), Some("three"), "woken in place");
        identity.sleep().await.expect("sleeps");
        assert!(identity.claim(claim_with_file(SECOND, "four\n", &path)).is_err());
        assert_eq!(read(), None, "a malformed claim brings none");
        identity.claim(claim_with_file(SECOND, "four", &path)).expect("is taken");
        assert_eq!(read().as_deref(), Some("four"), "restored as another");
        assert_eq!(
            identity.environment("/").expect("is awake")["SANDBOX_TOKEN_FILE"],
            path.to_str().expect("text")
        );
    }

    #[tokio::test]
    async fn a_spoilt_place_for_the_token_file_keeps_nobody_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let identity = Identity::default();
        identity.claim(claim(FIRST, "one")).expect("is taken");
        identity.sleep().await.expect("sleeps");
        // The agent put a folder there.
        let path = folder.path().join("token");
        std::fs::create_dir(&path).expect("makes");
        identity.claim(claim_with_file(SECOND, "two", &path)).expect("is taken all the same");
        assert_eq!(identity.bearer().expect("has one").to_str().ok(), Some("Bearer two"));
        assert!(!identity.is_asleep() && path.is_dir());
    }

    #[tokio::test(start_paused = true)]
    async fn the_door_waits_for_what_sleeps_and_not_for_ever() {
        let identity = std::sync::Arc::new(Identity::default());
        identity.claim(claim(FIRST, "one")).expect("is taken");
        let bearer = identity.bearer_when_awake().await.expect("is awake");
        assert_eq!(bearer.to_str().ok(), Some("Bearer one"));
        identity.sleep().await.expect("sleeps");
        let waking = async {
            tokio::time::sleep(WAKE_TIME / 2).await;
            identity.rotate(&rotation("two")).expect("is taken");
        };
        let (bearer, ()) = tokio::join!(identity.bearer_when_awake(), waking);
        assert_eq!(bearer.expect("is awake").to_str().ok(), Some("Bearer two"), "never the one of before");
        identity.sleep().await.expect("sleeps");
        identity.falls_asleep().await;
        assert!(identity.bearer_when_awake().await.is_none(), "nobody wakes it");
    }
}
