//! Requests to an engine: HTTP/1 over its socket, one connection for each, bounded in bytes.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Connection, handshake};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::backend::Silent;
use crate::root_socket::{RootSocketError, connect_to_root};

/// A connection at work, driven by whoever reads from it.
pub(super) struct Exchange {
    response: Response<Incoming>,
    driver: Driver,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// The socket cannot be dialled.
    #[error(transparent)]
    Dial(#[from] RootSocketError),
    /// It does not speak HTTP, or stopped to.
    #[error("the engine's answer broke off: {0}")]
    Http(#[from] hyper::Error),
    /// It says more than any engine says.
    #[error("the engine's answer is longer than {0} bytes")]
    TooLong(usize),
}

type Driven = Connection<TokioIo<UnixStream>, Empty<Bytes>>;

/// Moves bytes while something else is awaited, and ends quietly: what is missing then is missed by the reader.
struct Driver(Option<Driven>);

impl Exchange {
    /// Sends `GET path` and waits for the head of the answer.
    pub(super) async fn get(socket: &Path, path: &str) -> Result<Self, AskError> {
        let stream = connect_to_root(socket).await?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
        let mut driver = Driver(Some(connection));
        let request = Request::get(path).header("host", "engine").body(Empty::new());
        // The path is made of hex digits and constants.
        let request = request.unwrap_or_default();
        let response = driver.beside(sender.send_request(request)).await?;
        Ok(Self { response, driver })
    }

    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// A header as text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// The next bytes of the body; `None` at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, AskError> {
        let body = self.response.body_mut();
        loop {
            let Some(frame) = self.driver.beside(body.frame()).await else { return Ok(None) };
            if let Ok(data) = frame?.into_data() {
                return Ok(Some(data));
            }
        }
    }

    /// The whole body.
    pub(super) async fn body(mut self, most: usize) -> Result<Vec<u8>, AskError> {
        let mut all = Vec::new();
        while let Some(data) = self.chunk().await? {
            if all.len() + data.len() > most {
                return Err(AskError::TooLong(most));
            }
            all.extend_from_slice(&data);
        }
        Ok(all)
    }
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Driver {
    async fn beside<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        std::future::poll_fn(|context| {
            self.drive(context);
            work.as_mut().poll(context)
        })
        .await
    }

    fn drive(&mut self, context: &mut Context<'_>) {
        let ended =
            self.0.as_mut().is_some_and(|driven| matches!(Pin::new(driven).poll(context), Poll::Ready(_)));
        if ended {
            self.0 = None;
        }
    }
}

impl AskError {
    /// What an operator is told.
    pub(super) fn silent(&self) -> Silent {
        match self {
            Self::Dial(error) => error.silent(),
            Self::Http(error) => {
                let cause =
                    std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
                cause.map_or_else(|| self.to_string().into(), |cause| Silent::of("the engine", cause))
            }
            Self::TooLong(_) => self.to_string().into(),
        }
    }
}
