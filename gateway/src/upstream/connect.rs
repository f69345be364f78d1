// SPDX-License-Identifier: Apache-2.0
//! Opens connections to backends: look up, check, connect to exactly what was checked, TLS.

use super::address::{RefusedAddress, UpstreamRules};
use crate::config::CONNECT_TIME;
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Why a connection could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("the backend's URL has no host")]
    NoHost,
    #[error("the backend's name could not be looked up")]
    LookUp(#[source] std::io::Error),
    #[error(
        "`{name}`, which is never reachable, could not be looked up, so that no address can be told from it"
    )]
    Closed {
        name: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the backend's name has no address")]
    NoAddress,
    #[error("the address is not allowed")]
    Refused(#[from] RefusedAddress),
    #[error("no address of the backend accepts connections")]
    Connect(#[source] std::io::Error),
    #[error("TLS with the backend failed")]
    Tls(#[source] std::io::Error),
    #[error("the backend could not be reached in time")]
    TooSlow,
}

/// The certificate authorities that backends may have.
#[derive(Debug)]
pub(crate) struct Authorities(Arc<RootCertStore>);

impl Authorities {
    /// The system's, and some more.
    pub(crate) fn new(extra: Vec<CertificateDer<'static>>) -> Result<Self, rustls::Error> {
        let mut authorities = RootCertStore::empty();
        // A machine without authorities serves `http` backends; `https` ones then fail by name.
        authorities.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        for authority in extra {
            authorities.add(authority)?;
        }
        Ok(Self(Arc::new(authorities)))
    }
}

/// Opens connections for one of the pools.
#[derive(Clone)]
pub(crate) struct Connector {
    rules: UpstreamRules,
    tls: TlsConnector,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Connector").field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl Connector {
    /// A connector that offers these protocols (ALPN), best first.
    pub(crate) fn new(
        rules: UpstreamRules,
        authorities: &Authorities,
        protocols: &[&[u8]],
    ) -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(Arc::clone(&authorities.0))
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Self { rules, tls: TlsConnector::from(Arc::new(config)) })
    }

    async fn open(self, uri: Uri) -> Result<BackendStream, ConnectError> {
        let host = uri.host().ok_or(ConnectError::NoHost)?;
        let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        let is_tls = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let tcp = self.reach(host, port).await?;
        tcp.set_nodelay(true).map_err(ConnectError::Connect)?;
        if !is_tls {
            return Ok(BackendStream::Plain(TokioIo::new(tcp)));
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|_not_a_name| ConnectError::NoHost)?;
        let tls = self.tls.connect(name, tcp).await.map_err(ConnectError::Tls)?;
        Ok(BackendStream::Tls(Box::new(TokioIo::new(tls))))
    }

    /// Connects to the first allowed address that accepts. If any address is refused, and none of
    /// the allowed ones accepts, the refusal is what is told.
    async fn reach(&self, host: &str, port: u16) -> Result<TcpStream, ConnectError> {
        let mut last = ConnectError::NoAddress;
        let closed = self.closed(port).await?;
        for address in look_up(host, port).await? {
            if let Err(refused) = self.check(host, address, &closed) {
                last = refused.into();
                continue;
            }
            match TcpStream::connect(address).await {
                Ok(stream) => match self.check_connected(&stream) {
                    Ok(()) => return Ok(stream),
                    Err(refused) => last = refused,
                },
                Err(error) if !matches!(last, ConnectError::Refused(_)) => {
                    last = ConnectError::Connect(error);
                }
                Err(_) => {}
            }
        }
        Err(last)
    }

    /// What the names that are never reachable stand for now.
    ///
    /// If one cannot be looked up nothing is reached: any address could be its.
    async fn closed(&self, port: u16) -> Result<Vec<IpAddr>, ConnectError> {
        let mut closed = Vec::new();
        for name in self.rules.never_names(port) {
            let found = look_up(&name, port).await.map_err(|error| match error {
                ConnectError::LookUp(source) => ConnectError::Closed { name, source },
                other => other,
            })?;
            closed.extend(found.iter().map(SocketAddr::ip));
        }
        Ok(closed)
    }

    fn check(&self, host: &str, to: SocketAddr, closed: &[IpAddr]) -> Result<(), RefusedAddress> {
        self.rules.check_address(host, to)?;
        if closed.contains(&to.ip()) { Err(RefusedAddress::ours(to.ip())) } else { Ok(()) }
    }

    fn check_connected(&self, stream: &TcpStream) -> Result<(), ConnectError> {
        let from = stream.local_addr().map_err(ConnectError::Connect)?;
        let to = stream.peer_addr().map_err(ConnectError::Connect)?;
        Ok(self.rules.check_connection(from, to)?)
    }
}

async fn look_up(host: &str, port: u16) -> Result<Vec<SocketAddr>, ConnectError> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let found = tokio::net::lookup_host((host, port)).await.map_err(ConnectError::LookUp)?;
    Ok(found.collect())
}

impl tower_service::Service<Uri> for Connector {
    type Response = BackendStream;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<BackendStream, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let opening = self.clone().open(uri);
        Box::pin(async move {
            let opened = tokio::time::timeout(CONNECT_TIME, opening).await;
            opened.map_err(|_elapsed| ConnectError::TooSlow)?
        })
    }
}

/// A connection to a backend.
#[derive(Debug)]
pub(crate) enum BackendStream {
    Plain(TokioIo<TcpStream>),
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
}

impl Connection for BackendStream {
    fn connected(&self) -> Connected {
        match self {
            Self::Tls(stream) if stream.inner().get_ref().1.alpn_protocol() == Some(b"h2") => {
                Connected::new().negotiated_h2()
            }
            Self::Plain(_) | Self::Tls(_) => Connected::new(),
        }
    }
}

impl Read for BackendStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, into),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_read(context, into),
        }
    }
}

impl Write for BackendStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(context),
        }
    }
}
