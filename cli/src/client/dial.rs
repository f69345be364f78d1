// SPDX-License-Identifier: Apache-2.0
//! Opens a connection to a server, with TLS where the URL says `https`.

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use postern_common::tasks::Tasks;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Url;

/// To find and reach the server, TLS included.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// The body of a request.
pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;
/// Sends requests on one connection.
pub(super) type Sender = SendRequest<Body>;

/// A connection, with TLS or without.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<Any: AsyncRead + AsyncWrite + Unpin + Send> Stream for Any {}

/// Opens a connection to the URL's host; it is served by a task of `tasks`.
pub(super) async fn dial(url: &Url, tasks: &Tasks) -> anyhow::Result<Sender> {
    let (sender, connection) = handshake(TokioIo::new(open(url).await?)).await?;
    // The sender reports how a connection ended; here it only has to be driven. What it becomes by an
    // upgrade is never ours: a WebSocket has a connection of its own.
    tasks.spawn(async move |_stop| drop(connection.await));
    Ok(sender)
}

/// Opens a connection to the URL's host.
pub(super) async fn open(url: &Url) -> anyhow::Result<Box<dyn Stream>> {
    let connecting = async {
        let stream = TcpStream::connect(address(url)?).await?;
        stream.set_nodelay(true)?;
        let opened: Box<dyn Stream> = if url.scheme() == "https" {
            let name = url.host_str().context("the URL has no host")?.to_owned();
            let name = ServerName::try_from(name).context("the URL's host is no name that TLS knows")?;
            Box::new(TlsConnector::from(tls()?).connect(name, stream).await?)
        } else {
            Box::new(stream)
        };
        Ok(opened)
    };
    let connected = tokio::time::timeout(CONNECT_TIME, connecting).await;
    connected.map_err(|_elapsed| anyhow!("no connection within {} s", CONNECT_TIME.as_secs()))?
}

/// `HOST:PORT` for connecting; an IPv6 address is in brackets already.
fn address(url: &Url) -> anyhow::Result<String> {
    let host = url.host_str().context("the URL has no host")?;
    let port = url.port_or_known_default().context("the URL has no port")?;
    Ok(format!("{host}:{port}"))
}

/// What the `Host` header says: the port only where it is not the scheme's own.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn tls() -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_authorities_follow_the_url() {
        for (text, wanted_address, wanted_authority) in [
            ("http://localhost/x", "localhost:80", "localhost"),
            ("http://127.0.0.1:8080", "127.0.0.1:8080", "127.0.0.1:8080"),
            ("https://[::1]:9/", "[::1]:9", "[::1]:9"),
            ("https://h:443/", "h:443", "h"),
        ] {
            let url = Url::parse(text).expect(text);
            assert_eq!(address(&url).expect(text), wanted_address);
            assert_eq!(authority(&url), wanted_authority);
        }
    }
}
