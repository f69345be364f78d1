// SPDX-License-Identifier: Apache-2.0
//! The way to the gateway: a unix socket of this sandbox alone, or, in a pod, an address whose
//! certificate is checked against the authority that came, signed, with the identity.

use crate::identity::Gateway;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// What a connection is to whoever uses it.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<Any: AsyncRead + AsyncWrite + Unpin + Send> Stream for Any {}

/// Where the gateway is.
pub(crate) enum Way {
    /// At this socket.
    Socket(PathBuf),
    /// At this address, in plain HTTP: an operator's choice.
    Plain(SocketAddr),
    /// At this address, by TLS.
    #[cfg(feature = "pod")]
    Tls(SocketAddr, tls::Client),
    /// Nowhere that this program can reach.
    None(String),
}

impl Way {
    pub(crate) fn to(gateway: Option<&Gateway>, socket: &Path) -> Self {
        match gateway {
            None => Self::Socket(socket.to_owned()),
            Some(Gateway { address, tls: None }) => Self::Plain(*address),
            #[cfg(feature = "pod")]
            Some(Gateway { address, tls: Some(tls) }) => match tls::Client::new(tls) {
                Ok(client) => Self::Tls(*address, client),
                Err(why) => Self::None(why),
            },
            #[cfg(not(feature = "pod"))]
            Some(_) => Self::None("this build has no TLS".to_owned()),
        }
    }
}

/// Whether an identity's gateway can be reached at all, before the identity is taken.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn is_usable(gateway: &Gateway) -> Result<(), String> {
    match Way::to(Some(gateway), Path::new("")) {
        Way::None(why) => Err(why),
        _ => Ok(()),
    }
}

/// A new connection.
pub(crate) async fn connect(way: &Way) -> io::Result<Box<dyn Stream>> {
    Ok(match way {
        Way::Socket(path) => Box::new(UnixStream::connect(path).await?),
        Way::Plain(address) => Box::new(tcp(*address).await?),
        #[cfg(feature = "pod")]
        Way::Tls(address, client) => Box::new(client.connect(tcp(*address).await?).await?),
        Way::None(why) => return Err(io::Error::other(why.clone())),
    })
}

async fn tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(feature = "pod")]
mod tls {
    use crate::identity::GatewayTls;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, ServerName};
    use rustls::{ClientConfig, RootCertStore};
    use std::io;
    use std::sync::Arc;
    use tokio::net::TcpStream;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream;

    /// One gateway, by its name and authority.
    pub(crate) struct Client {
        name: ServerName<'static>,
        connector: TlsConnector,
    }

    impl Client {
        pub(super) fn new(tls: &GatewayTls) -> Result<Self, String> {
            let name = ServerName::try_from(tls.name.clone())
                .map_err(|_malformed| "the gateway's name is no name".to_owned())?;
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(tls.ca.as_bytes()) {
                let certificate = certificate.map_err(|error| format!("the gateway's authority: {error}"))?;
                roots.add(certificate).map_err(|error| format!("the gateway's authority: {error}"))?;
            }
            if roots.is_empty() {
                return Err("the gateway's authority holds no certificate".to_owned());
            }
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(|error| error.to_string())?
                .with_root_certificates(roots)
                .with_no_client_auth();
            Ok(Self { name, connector: TlsConnector::from(Arc::new(config)) })
        }

        pub(super) async fn connect(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
            self.connector.connect(self.name.clone(), stream).await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::GatewayTls;

    fn gateway(tls: Option<(&str, &str)>) -> Gateway {
        let tls = tls.map(|(name, ca)| GatewayTls { name: name.to_owned(), ca: ca.to_owned() });
        Gateway { address: SocketAddr::from(([127, 0, 0, 1], 8081)), tls }
    }

    #[test]
    fn without_a_word_about_a_gateway_it_is_at_the_socket() {
        assert!(matches!(Way::to(None, Path::new("/s")), Way::Socket(path) if path == Path::new("/s")));
        assert!(matches!(Way::to(Some(&gateway(None)), Path::new("/s")), Way::Plain(_)));
    }

    #[test]
    fn an_authority_that_is_none_is_refused_and_never_skipped() {
        for (name, ca) in [
            ("gateway", ""),
            ("gateway", "no PEM at all"),
            ("gateway", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            ("not a name", ""),
        ] {
            assert!(is_usable(&gateway(Some((name, ca)))).is_err(), "{name} {ca}");
        }
    }
}
