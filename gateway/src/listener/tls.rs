// SPDX-License-Identifier: Apache-2.0
//! TLS of the door over TCP: certificate and key from files, which are read again when they change.
//!
//! What the files say is looked at, not their names' events: so a rewrite, a rename and the swap of
//! a link (as Kubernetes does it) are all seen. A pair that cannot be used changes nothing: the one
//! before serves on, and what is wrong is told once. Client certificates say who may connect, never
//! who a sandbox is.

mod expiry;

use crate::config::{Clients, Tls as Files};
use crate::metrics::CertificateMetrics;
use arc_swap::ArcSwap;
use aws_lc_rs::digest::{SHA256, digest};
use expiry::not_after;
use jiff::Timestamp;
use postern_common::tasks::Stop;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// What ALPN calls HTTP/2.
pub(super) const HTTP2: &[u8] = b"h2";

/// The files of the door's TLS cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsFilesUnusable {
    /// One of them cannot be read.
    #[error("`{}` cannot be read; it must be a file that the gateway may read", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// One of them is not what it should be.
    #[error("`{}` holds no {wanted} in PEM", .path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// What was looked for.
        wanted: &'static str,
        /// What was found instead.
        #[source]
        source: Option<pem::Error>,
    },
    /// Together they do not work.
    #[error("certificate `{}` and its key cannot be used together", .path.display())]
    Pair {
        /// The certificate's file.
        path: PathBuf,
        /// What rustls said.
        #[source]
        source: rustls::Error,
    },
    /// No client certificate could be verified.
    #[error("`{}` holds no authority that can verify client certificates", .path.display())]
    Authorities {
        /// The authorities' file.
        path: PathBuf,
        /// What rustls said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What the files said.
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    authorities: Option<Vec<u8>>,
}

impl Contents {
    async fn read(files: &Files) -> Result<Self, TlsFilesUnusable> {
        let authorities = match &files.clients {
            None => None,
            Some(clients) => Some(read(&clients.authorities).await?),
        };
        Ok(Self { certificate: read(&files.certificate).await?, key: read(&files.key).await?, authorities })
    }

    fn digest(&self) -> [u8; 32] {
        let parts = [&self.certificate, &self.key, self.authorities.as_ref().unwrap_or(&Vec::new())]
            .map(|part| digest(&SHA256, part).as_ref().to_vec());
        let mut whole = [0; 32];
        whole.copy_from_slice(digest(&SHA256, &parts.concat()).as_ref());
        whole
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, TlsFilesUnusable> {
    let unreadable = |source| TlsFilesUnusable::Read { path: path.to_owned(), source };
    tokio::fs::read(path).await.map_err(unreadable)
}

/// What is in force.
#[derive(Debug)]
struct InForce {
    config: Arc<ServerConfig>,
    expires: Option<Timestamp>,
}

/// What a file said, to tell whether it says something else; `None` if it cannot be read.
type Seen = Option<[u8; 32]>;

/// The door's TLS.
#[derive(Debug)]
pub(crate) struct Tls {
    files: Files,
    opened: Seen,
    in_force: ArcSwap<InForce>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsFilesUnusable`]: there is nothing before that could serve on.
    pub(crate) async fn open(files: Files) -> Result<Arc<Self>, TlsFilesUnusable> {
        let contents = Contents::read(&files).await?;
        let (opened, in_force) = (Some(contents.digest()), load(&files, &contents)?);
        Ok(Arc::new(Self { files, opened, in_force: ArcSwap::from_pointee(in_force) }))
    }

    /// Shakes hands with a peer within `wait`; `None` if that comes to nothing.
    pub(super) async fn accept(&self, stream: TcpStream, wait: Duration) -> Option<TlsStream<TcpStream>> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.in_force.load().config));
        tokio::time::timeout(wait, acceptor.accept(stream)).await.ok()?.ok()
    }

    /// How long the certificate is good for from `now` on, in seconds; below 0 if it is not any more.
    pub(crate) fn expiry(&self, now: Timestamp) -> Option<f64> {
        let expires = self.in_force.load().expires?;
        Some(expires.duration_since(now).as_secs_f64())
    }

    /// Looks at the files again and again until it is stopped.
    pub(crate) async fn follow(self: Arc<Self>, metrics: CertificateMetrics, stop: Stop) {
        let mut seen = self.opened;
        while stop.run_until_cancelled(tokio::time::sleep(self.files.look_every)).await.is_some() {
            seen = self.look(seen, &metrics).await;
        }
    }

    /// Puts what the files say in force, if it is new; gives what was seen.
    async fn look(&self, seen: Seen, metrics: &CertificateMetrics) -> Seen {
        let read = Contents::read(&self.files).await;
        let now = read.as_ref().ok().map(Contents::digest);
        if seen == now {
            return seen;
        }
        match read.and_then(|contents| load(&self.files, &contents)) {
            Ok(loaded) => {
                let expires = loaded.expires.map(tracing::field::display);
                tracing::info!(expires, "the gateway's certificate was read again");
                self.in_force.store(Arc::new(loaded));
                metrics.reloaded("ok");
            }
            Err(unusable) => {
                let cause = causes(&unusable);
                tracing::error!(cause, "the gateway's new certificate cannot be used; the one before stays");
                metrics.reloaded("refused");
            }
        }
        now
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push_str(": ");
        words.push_str(&error.to_string());
        cause = error.source();
    }
    words
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsFilesUnusable> {
    let none = |source| TlsFilesUnusable::Pem { path: path.to_owned(), wanted: "certificate", source };
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| none(Some(error)))?;
    if found.is_empty() { Err(none(None)) } else { Ok(found) }
}

fn load(files: &Files, contents: &Contents) -> Result<InForce, TlsFilesUnusable> {
    let chain = certificates(&files.certificate, &contents.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&contents.key).map_err(|error| TlsFilesUnusable::Pem {
        path: files.key.clone(),
        wanted: "private key",
        source: Some(error),
    })?;
    let expires = chain.iter().filter_map(|certificate| not_after(certificate)).min();
    let pair = |source| TlsFilesUnusable::Pair { path: files.certificate.clone(), source };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(pair)?;
    let builder = match (&files.clients, &contents.authorities) {
        (Some(clients), Some(pem)) => builder.with_client_cert_verifier(verifier(clients, pem)?),
        _ => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(pair)?;
    config.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
    Ok(InForce { config: Arc::new(config), expires })
}

fn verifier(clients: &Clients, pem: &[u8]) -> Result<Arc<dyn ClientCertVerifier>, TlsFilesUnusable> {
    let path = &clients.authorities;
    let mut authorities = RootCertStore::empty();
    for authority in certificates(path, pem)? {
        let unusable = |source: rustls::Error| TlsFilesUnusable::Authorities {
            path: path.clone(),
            source: source.into(),
        };
        authorities.add(authority).map_err(unusable)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider);
    if !clients.are_required {
        builder = builder.allow_unauthenticated();
    }
    builder
        .build()
        .map_err(|source| TlsFilesUnusable::Authorities { path: path.clone(), source: source.into() })
}
