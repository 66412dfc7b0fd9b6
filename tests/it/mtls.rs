//! Handshakes by the published crates `spiffe` and `spiffe-rustls`.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use spiffe::X509Source;
use spiffe_rustls::{authorizer, mtls_client, mtls_server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The crate's source of what that agent gives us.
pub(crate) async fn source(socket: &Path) -> X509Source {
    let endpoint = format!("unix:{}", socket.display());
    X509Source::builder().endpoint(endpoint).build().await.unwrap()
}

/// One handshake and a byte each way: what each side says.
pub(crate) async fn talk(server: &X509Source, client: &X509Source, ids: (&str, &str)) -> Result<(), String> {
    let server = mtls_server(server.clone()).authorize(authorizer::exact([ids.1]).unwrap()).build();
    let client = mtls_client(client.clone()).authorize(authorizer::exact([ids.0]).unwrap()).build();
    let acceptor = TlsAcceptor::from(Arc::new(server.map_err(|e| e.to_string())?));
    let connector = TlsConnector::from(Arc::new(client.map_err(|e| e.to_string())?));
    let (near, far) = tokio::io::duplex(64 * 1024);
    let serve = async {
        let mut tls = acceptor.accept(near).await?;
        let byte = tls.read_u8().await?;
        tls.write_u8(byte + 1).await?;
        tls.flush().await
    };
    let call = async {
        let name = ServerName::try_from("a.name.that.nobody.checks").unwrap();
        let mut tls = connector.connect(name, far).await?;
        tls.write_u8(7).await?;
        tls.flush().await?;
        tls.read_u8().await
    };
    let (served, called) = tokio::join!(serve, call);
    match (served, called) {
        (Ok(()), Ok(8)) => Ok(()),
        (served, called) => Err(format!("{served:?}, {called:?}")),
    }
}
