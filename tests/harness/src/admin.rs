//! The admin socket, blocking.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use mayfly_proto::admin::admin_client::AdminClient;
use mayfly_proto::admin::order_authority_request::Order;
use mayfly_proto::admin::revoke_leases_request::Target;
use mayfly_proto::admin::{
    AuthorityRecord, ExplainRequest, ExplainResponse, Lease, ListAuthoritiesRequest, ListEntriesRequest,
    ListEntriesResponse, ListLeasesRequest, OrderAuthorityRequest, RevokeLeasesRequest, RevokeLeasesResponse,
    StatusRequest, StatusResponse,
};
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::transport::Channel;

use crate::Agent;
use crate::wire::channel;

/// One connection, made anew for each call.
#[derive(Debug)]
pub struct Admin {
    socket: PathBuf,
    runtime: Runtime,
}

impl Admin {
    /// For that socket.
    ///
    /// # Panics
    /// When no runtime can be made.
    pub fn new(socket: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        Self { socket: socket.to_owned(), runtime }
    }

    async fn client(&self) -> Result<AdminClient<Channel>, Status> {
        let channel = channel(&self.socket).await;
        channel.map(AdminClient::new).map_err(|why| Status::unavailable(why.to_string()))
    }

    /// `Status`.
    ///
    /// # Panics
    /// When it is refused.
    pub fn status(&self) -> StatusResponse {
        let call = async { self.client().await?.status(StatusRequest {}).await };
        self.runtime.block_on(call).expect("admin status").into_inner()
    }

    /// `ListLeases`.
    ///
    /// # Panics
    /// When it is refused.
    pub fn leases(&self, request: ListLeasesRequest) -> Vec<Lease> {
        self.runtime.block_on(async {
            let mut client = self.client().await.expect("admin socket");
            let mut stream = client.list_leases(request).await.expect("list leases").into_inner();
            let mut leases = Vec::new();
            while let Some(lease) = stream.message().await.expect("a lease") {
                leases.push(lease);
            }
            leases
        })
    }

    /// Every live lease of a process.
    pub fn live_leases_of(&self, pid: u32) -> Vec<Lease> {
        self.leases(ListLeasesRequest { pid, ..ListLeasesRequest::default() })
    }

    /// `RevokeLeases`.
    ///
    /// # Errors
    /// The call's status.
    pub fn revoke(&self, target: Target) -> Result<RevokeLeasesResponse, Status> {
        let request = RevokeLeasesRequest { target: Some(target), reason: "test".to_owned() };
        let call = async { self.client().await?.revoke_leases(request).await };
        self.runtime.block_on(call).map(tonic::Response::into_inner)
    }

    /// `ListEntries`.
    ///
    /// # Panics
    /// When it is refused.
    pub fn entries(&self) -> ListEntriesResponse {
        let call = async { self.client().await?.list_entries(ListEntriesRequest {}).await };
        self.runtime.block_on(call).expect("list entries").into_inner()
    }

    /// `ListAuthorities`.
    ///
    /// # Errors
    /// The call's status.
    pub fn authorities(&self) -> Result<Vec<AuthorityRecord>, Status> {
        let call = async { self.client().await?.list_authorities(ListAuthoritiesRequest {}).await };
        Ok(self.runtime.block_on(call)?.into_inner().authorities)
    }

    /// `OrderAuthority`; with `activate` nothing is waited for.
    ///
    /// # Errors
    /// The call's status.
    ///
    /// # Panics
    /// When the answer names no authority.
    pub fn order(&self, order: Order, now: bool) -> Result<AuthorityRecord, Status> {
        let request = OrderAuthorityRequest { order: Some(order), now };
        let call = async { self.client().await?.order_authority(request).await };
        Ok(self.runtime.block_on(call)?.into_inner().authority.expect("an authority"))
    }

    /// `Explain`.
    ///
    /// # Errors
    /// The call's status.
    pub fn explain(&self, pid: u32) -> Result<ExplainResponse, Status> {
        let call = async { self.client().await?.explain(ExplainRequest { pid }).await };
        self.runtime.block_on(call).map(tonic::Response::into_inner)
    }
}

impl Agent {
    /// Lets every user at the admin socket. Stands for being in its group: what is refused then is not refused by the
    /// file system.
    ///
    /// # Panics
    /// When the socket is not there.
    pub fn open_admin_socket(&self) {
        let socket = self.admin_socket();
        let dir = socket.parent().expect("a directory");
        for (path, mode) in [(dir, 0o711), (socket.as_path(), 0o666)] {
            std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("modes of the admin socket");
        }
    }
}
