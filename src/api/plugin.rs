//! External attestors, asked over their sockets (`mayfly.attestor.v1`).
//!
//! One speaks for the selectors of its configured type and keys, and for nothing else; an answer that says more, or
//! more than fits, is no answer. It is trusted as far as its socket is: root's hands alone, and a server that is root.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use mayfly_attestors::{
    Backend, BackendFuture, ForeignType, Found, Selector, Silent, Subject, connect_to_root,
};
use mayfly_proto::attestor as proto;
use mayfly_proto::attestor::attestor_client::AttestorClient;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

use crate::diag::Shown;

/// One external attestor.
#[derive(Debug)]
pub struct Plugin {
    kind: ForeignType,
    socket: PathBuf,
    deadline: Duration,
    /// Made when it is first asked: it dials when it must, and again after the attestor was restarted.
    channel: OnceLock<Channel>,
}

impl Plugin {
    /// Speaks for `kind` at `socket`; nothing is dialled yet.
    pub fn new(kind: ForeignType, socket: PathBuf, deadline: Duration) -> Self {
        Self { kind, socket, deadline, channel: OnceLock::new() }
    }

    fn channel(&self) -> Channel {
        let dial = || {
            let socket = self.socket.clone();
            let connector = tower::service_fn(move |_: Uri| {
                let socket = socket.clone();
                async move { connect_to_root(&socket).await.map(TokioIo::new) }
            });
            Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector)
        };
        self.channel.get_or_init(dial).clone()
    }

    async fn ask(&self, subject: &Subject<'_>) -> Result<Found, Silent> {
        let mut request = Request::new(question(subject));
        request.set_timeout(self.deadline);
        let mut client = AttestorClient::new(self.channel()).max_decoding_message_size(MOST_BYTES);
        let answer = client.attest(request).await.map_err(|status| self.fault(&status))?;
        let selectors = answer.into_inner().selectors;
        if selectors.len() > MOST_SELECTORS {
            return Err(format!("it answered with more than {MOST_SELECTORS} selectors").into());
        }
        let selectors = selectors.iter().map(|one| self.selector(one)).collect::<Result<_, _>>()?;
        Ok(Found { selectors, notes: Vec::new() })
    }

    fn selector(&self, said: &proto::Selector) -> Result<Selector, Silent> {
        if said.value.is_empty() || said.value.len() > MOST_VALUE {
            return Err(format!("it answered with a value that has not 1 to {MOST_VALUE} bytes").into());
        }
        self.kind.selector(&said.key, &said.value).ok_or_else(|| {
            let key = Shown(&said.key);
            format!("it answered with the key `{key}`, which its configuration does not list").into()
        })
    }

    fn fault(&self, status: &Status) -> Silent {
        let mut why = format!("{}: {}", self.socket.display(), Shown(status.message()));
        // What stands behind a failed connection is the part that helps.
        let mut source = std::error::Error::source(status);
        while let Some(error) = source {
            why = format!("{}: {error}", self.socket.display());
            source = error.source();
        }
        why.into()
    }
}

impl Backend for Plugin {
    fn kind(&self) -> &'static str {
        self.kind.name()
    }

    fn keys(&self) -> &'static [&'static str] {
        self.kind.keys()
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    fn attest<'a>(&'a self, subject: &'a Subject<'a>) -> BackendFuture<'a> {
        Box::pin(self.ask(subject))
    }
}

fn question(subject: &Subject<'_>) -> proto::AttestRequest {
    let process = subject.process();
    let container = subject.container();
    proto::AttestRequest {
        pid: process.pid(),
        pidfd_inode: process.key().pidfs_inode.unwrap_or_default(),
        uid: process.uid(),
        gid: process.gid(),
        cgroup: subject.cgroup_path().unwrap_or_default().into(),
        container_id: container.map(|container| container.id.to_string()).unwrap_or_default(),
        pod_uid: container
            .and_then(|container| Some(container.pod.as_ref()?.to_string()))
            .unwrap_or_default(),
    }
}

const MOST_SELECTORS: usize = 64;
const MOST_VALUE: usize = 1024;
/// As many selectors as there may be, each as long as it may be, and what surrounds them.
const MOST_BYTES: usize = 128 * 1024;
