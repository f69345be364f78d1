// SPDX-License-Identifier: Apache-2.0
//! This installation's certificate authority: made once, kept sealed in the database, and known to
//! each gateway by its credential. It signs the certificate of what gateways come to, the control stream
//! and the files API, and nothing else.

use crate::keys::{InstallationKeys, KeysError};
use crate::seal::{Place, SealError};
use crate::store::{Store, StoreError};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{Timestamp, ToSpan as _, tz::TimeZone};
use postern_common::secret::Secret;
use postern_common::stream::SERVER_NAME;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::TLS13;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How long the authority is good: gateways hold it in their credential, so replacing it means new
/// credentials.
const AUTHORITY_YEARS: i32 = 20;
/// How long a server's certificate is good; each start makes a new one, and so does each
/// [`RENEW_HOURS`].
const CERTIFICATE_DAYS: i32 = 90;
/// When a running server's certificate is made anew.
pub(super) const RENEW_HOURS: i64 = 24;

/// What the database keeps, sealed.
#[derive(Serialize, Deserialize)]
struct Kept {
    key: String,
    certificate: String,
}

/// The authority.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Authority(…)")
    }
}

/// The control stream's certificates could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A certificate or key.
    #[error("the control stream's certificate could not be made")]
    Certificate(#[from] rcgen::Error),
    /// What is kept cannot be read.
    #[error("the database's certificate authority cannot be read; was it edited by hand?")]
    Malformed,
    /// A day that no calendar has.
    #[error("this machine's clock shows no day that a certificate can name; set the clock")]
    Clock(#[from] jiff::Error),
    /// TLS.
    #[error("the control stream's certificate cannot be used")]
    Tls(#[from] rustls::Error),
    /// It does not open.
    #[error("could not open the installation's certificate authority")]
    Seal(#[from] SealError),
    /// A key of the installation.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Authority {
    /// The installation's authority, made if there is none. Replicas that ask at once get the same.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub(super) async fn open(
        store: &Store,
        keys: &InstallationKeys,
        now: Timestamp,
    ) -> Result<Self, AuthorityError> {
        let fresh = make(now)?;
        let sealed =
            store.fact("control_authority", keys.data.seal(Place::Authority, fresh.reveal())?).await?;
        let kept = keys.data.open(Place::Authority, &sealed)?;
        let kept: Kept = serde_json::from_slice(kept.reveal()).map_err(|_other| AuthorityError::Malformed)?;
        let bytes = |text: &str| STANDARD.decode(text).map_err(|_not_base64| AuthorityError::Malformed);
        let key = KeyPair::try_from(bytes(&kept.key)?)?;
        let certificate = CertificateDer::from(bytes(&kept.certificate)?);
        Ok(Self { issuer: Issuer::new(authority(now)?, key), certificate })
    }

    /// What gateways recognise the orchestrator by.
    pub(super) const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// TLS of the control stream with a certificate of its own, good from a day ago.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub(super) fn server(&self, now: Timestamp) -> Result<Arc<ServerConfig>, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut wanted = CertificateParams::new(vec![SERVER_NAME.to_owned()])?;
        wanted.distinguished_name = named(SERVER_NAME);
        wanted.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        wanted.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        wanted.use_authority_key_identifier_extension = true;
        set_validity(&mut wanted, day(now, 0, -1)?, day(now, 0, CERTIFICATE_DAYS)?);
        let certificate = wanted.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|_other| AuthorityError::Malformed)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        Ok(Arc::new(config))
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// The authority's own certificate, but for its key. The name and usages never change, so that a
/// certificate which it signs later still chains to the one that gateways hold.
fn authority(now: Timestamp) -> Result<CertificateParams, AuthorityError> {
    let mut wanted = CertificateParams::new(Vec::new())?;
    wanted.distinguished_name = named("postern control stream authority");
    wanted.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    wanted.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    set_validity(&mut wanted, day(now, 0, -1)?, day(now, AUTHORITY_YEARS, 0)?);
    Ok(wanted)
}

fn make(now: Timestamp) -> Result<Secret<Vec<u8>>, AuthorityError> {
    let key = KeyPair::generate()?;
    let certificate = authority(now)?.self_signed(&key)?;
    let kept =
        Kept { key: STANDARD.encode(key.serialize_der()), certificate: STANDARD.encode(certificate.der()) };
    serde_json::to_vec(&kept).map(Secret::new).map_err(|_no_form| AuthorityError::Malformed)
}

/// Year, month and day.
type Day = (i32, u8, u8);

fn set_validity(wanted: &mut CertificateParams, from: Day, to: Day) {
    wanted.not_before = date_time_ymd(from.0, from.1, from.2);
    wanted.not_after = date_time_ymd(to.0, to.1, to.2);
}

/// The day that lies so far ahead.
fn day(now: Timestamp, years: i32, days: i32) -> Result<Day, AuthorityError> {
    let date = TimeZone::UTC.to_datetime(now).date().checked_add(years.years().days(days))?;
    let part = |number: i8| u8::try_from(number).unwrap_or(1);
    Ok((i32::from(date.year()), part(date.month()), part(date.day())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::GivenKeys;
    use crate::store::tests::Database;
    use postern_common::clock;
    use rustls::client::WebPkiServerVerifier;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection};

    async fn opened(database: &Database, folder: &std::path::Path, now: Timestamp) -> Authority {
        let keys = InstallationKeys::open(GivenKeys::default(), folder, &database.store).await.expect("keys");
        Authority::open(&database.store, &keys, now).await.expect("opens")
    }

    /// Both ends in memory: whether a gateway that holds `certificate` shakes hands with `server`.
    fn shakes_hands(certificate: &CertificateDer<'static>, server: &Authority, now: Timestamp) -> bool {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).expect("is an authority");
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .expect("speaks it")
            .with_webpki_verifier(verifier.expect("has roots"))
            .with_no_client_auth();
        let name = ServerName::try_from(SERVER_NAME).expect("a name");
        let mut client = ClientConnection::new(Arc::new(config), name).expect("begins");
        let mut server = ServerConnection::new(server.server(now).expect("has TLS")).expect("begins");
        let mut wire = Vec::new();
        for _ in 0..4 {
            client.write_tls(&mut wire).expect("in memory");
            if !wire.is_empty() {
                server.read_tls(&mut wire.as_slice()).expect("in memory");
            }
            drop(server.process_new_packets());
            wire.clear();
            server.write_tls(&mut wire).expect("in memory");
            if !wire.is_empty() {
                client.read_tls(&mut wire.as_slice()).expect("in memory");
            }
            if client.process_new_packets().is_err() {
                return false;
            }
            wire.clear();
        }
        !client.is_handshaking()
    }

    #[tokio::test]
    async fn a_gateway_believes_its_installation_across_restarts_and_no_other() {
        let (database, folder) = (Database::sqlite().await, tempfile::tempdir().expect("a folder"));
        let now = clock::now();
        let first = opened(&database, folder.path(), now).await;
        let held = first.certificate().clone();
        assert!(shakes_hands(&held, &first, now));
        let restarted = opened(&database, folder.path(), now).await;
        assert_eq!(*restarted.certificate(), held);
        assert!(shakes_hands(&held, &restarted, now), "a later certificate chains to the same authority");
        let (other, elsewhere) = (Database::sqlite().await, tempfile::tempdir().expect("a folder"));
        assert!(!shakes_hands(&held, &opened(&other, elsewhere.path(), now).await, now));
    }

    #[test]
    fn days_are_counted_over_months_and_years() {
        let at: Timestamp = "2026-11-26T10:00:00Z".parse().expect("a time");
        assert_eq!(day(at, 0, 90).expect("a day"), (2027, 2, 24));
        assert_eq!(day(at, 20, 0).expect("a day"), (2046, 11, 26));
        assert_eq!(day(at, 0, -1).expect("a day"), (2026, 11, 25));
    }
}
