//! One connection to an agent, checked before a byte is sent.
//!
//! A socket path proves nothing: anybody may have bound it first (threat A15). So the kernel is asked who
//! listens there, and unless that is root, ourselves or the uid the user named, the command ends with
//! exit code 4. A connection that breaks is never silently replaced: the next one is checked again.

mod discover;
mod wait;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use mayfly_proto::admin::admin_client::AdminClient;
use mayfly_proto::admin::bundles_client::BundlesClient;
use mayfly_proto::identity::identity_client::IdentityClient;
use mayfly_proto::task::task_admin_client::TaskAdminClient;
use mayfly_proto::task::task_api_client::TaskApiClient;
use mayfly_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint as Transport};
use tonic::{Request, Status};
use tonic_health::pb::health_client::HealthClient;

pub(crate) use self::discover::{Env, Places, Which, places};
pub(crate) use self::wait::{Patience, WaitFor};
use super::failure::Failure;
pub(crate) use crate::endpoint::EndpointError;

/// How long a person waits for one answer, in seconds. Streams are not limited after their first message.
pub(crate) const ANSWER_SECONDS: u64 = 10;

/// CRLs and bundles of a large node exceed gRPC's default of 4 MiB.
const MESSAGE_MAX: usize = 64 << 20;

/// Flags of every command that talks to an agent.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct ClientArgs {
    /// The agent's socket: `unix:///path` or an absolute path. Default: the environment
    /// (`SPIFFE_ENDPOINT_SOCKET`, for operators' commands `MAYFLY_ADMIN_SOCKET`), then /run/mayfly,
    /// `$XDG_RUNTIME_DIR/mayfly`, /tmp/mayfly-UID
    #[arg(long, value_name = "SOCKET")]
    pub(crate) socket: Option<String>,
    /// Trust an agent that runs as this uid, besides root and yourself [env: `MAYFLY_SERVER_UID`]
    #[arg(long, value_name = "UID")]
    pub(crate) server_uid: Option<u32>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// None of the usual places has a socket.
    #[error("no agent found: no socket at {}", list(.looked))]
    NoSocket {
        /// Where we looked.
        looked: Vec<PathBuf>,
    },
    /// Something is or was there, and nobody accepts.
    #[error("cannot connect to `{}`: {source}", .path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The caller may not use this socket.
    #[error("no permission to connect to `{}`", .path.display())]
    Forbidden {
        /// The socket.
        path: PathBuf,
    },
    /// Somebody else's process listens there (A15).
    #[error("`{}` is served by uid {uid}, which is neither root nor you: not talking to it", .path.display())]
    Untrusted {
        /// The socket.
        path: PathBuf,
        /// Who listens.
        uid: u32,
    },
    /// Longer than a Unix socket address can hold.
    #[error("the socket path `{}` is longer than 107 bytes", .path.display())]
    PathTooLong {
        /// The socket.
        path: PathBuf,
    },
    /// Connected, but it does not speak HTTP/2.
    #[error("`{}` does not answer like an agent", .path.display())]
    Handshake {
        /// The socket.
        path: PathBuf,
    },
}

/// Whom to talk to, resolved from flags and environment but not yet connected.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    places: Places,
    env: Env,
    server_uid: Option<u32>,
}

impl Target {
    /// Resolves flags and environment; a malformed one is a usage error.
    pub(crate) fn resolve(args: &ClientArgs, which: Which, env: &Env) -> Result<Self, Failure> {
        let from_env = match &env.server_uid {
            Some(text) => Some(text.to_str().and_then(|uid| uid.parse::<u32>().ok()).ok_or_else(|| {
                Failure::usage(format!("MAYFLY_SERVER_UID `{}` is not a uid", text.to_string_lossy()))
            })?),
            None => None,
        };
        let places = places(args.socket.as_deref(), which, env)?;
        Ok(Self { places, env: env.clone(), server_uid: args.server_uid.or(from_env) })
    }

    /// The paths that may become the socket.
    pub(crate) fn paths(&self) -> &[PathBuf] {
        self.places.paths()
    }

    /// The named place, or the first usual one where a socket exists now.
    pub(crate) fn path(&self) -> Result<&Path, ConnectError> {
        let none = || ConnectError::NoSocket { looked: self.places.paths().to_vec() };
        self.places.pick(&self.env).ok_or_else(none)
    }

    /// Who may serve there besides root and ourselves.
    pub(crate) fn server_uid(&self) -> Option<u32> {
        self.server_uid
    }

    /// Connects once.
    pub(crate) async fn connect(&self) -> Result<Connection, ConnectError> {
        handshake(self.path()?, self.open().await?).await
    }

    /// Opens a checked stream and says nothing on it.
    pub(crate) async fn open(&self) -> Result<UnixStream, ConnectError> {
        let path = self.path()?;
        let stream = open(path).await?;
        self.check_owner(path, &stream)?;
        Ok(stream)
    }

    /// The uid of whoever called `listen`, from the kernel.
    fn check_owner(&self, path: &Path, stream: &UnixStream) -> Result<(), ConnectError> {
        let uid = match stream.peer_cred() {
            Ok(credentials) => credentials.uid(),
            Err(source) => return Err(ConnectError::Refused { path: path.to_owned(), source }),
        };
        let is_known = uid == 0 || uid == self.env.uid || Some(uid) == self.server_uid;
        if is_known || crate::files::given_by_root(path) == Some(uid) {
            return Ok(());
        }
        Err(ConnectError::Untrusted { path: path.to_owned(), uid })
    }
}

/// A checked connection. Dropping it ends every call on it.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    channel: InterceptedService<Channel, SpiffeHeader>,
}

impl Connection {
    /// The SPIFFE Workload API.
    pub(crate) fn workload(&self) -> SpiffeWorkloadApiClient<InterceptedService<Channel, SpiffeHeader>> {
        SpiffeWorkloadApiClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_MAX)
    }

    /// Who am I.
    pub(crate) fn identity(&self) -> IdentityClient<InterceptedService<Channel, SpiffeHeader>> {
        IdentityClient::new(self.channel.clone())
    }

    /// The operator's calls; only on the admin socket.
    pub(crate) fn admin(&self) -> AdminClient<InterceptedService<Channel, SpiffeHeader>> {
        AdminClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_MAX)
    }

    /// Bundles of other trust domains; only on the admin socket.
    pub(crate) fn bundles(&self) -> BundlesClient<InterceptedService<Channel, SpiffeHeader>> {
        BundlesClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_MAX)
    }

    /// A process's own tasks.
    pub(crate) fn tasks(&self) -> TaskApiClient<InterceptedService<Channel, SpiffeHeader>> {
        TaskApiClient::new(self.channel.clone())
    }

    /// Everybody's tasks; only on the admin socket.
    pub(crate) fn task_admin(&self) -> TaskAdminClient<InterceptedService<Channel, SpiffeHeader>> {
        TaskAdminClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_MAX)
    }

    /// gRPC health.
    pub(crate) fn health(&self) -> HealthClient<InterceptedService<Channel, SpiffeHeader>> {
        HealthClient::new(self.channel.clone())
    }
}

/// Speaks on a stream that somebody else opened.
pub(crate) async fn inherited(stream: UnixStream) -> Result<Connection, ConnectError> {
    handshake(Path::new("an inherited connection"), stream).await
}

/// Puts `workload.spiffe.io: true` on every call (WEP-06).
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpiffeHeader;

impl Interceptor for SpiffeHeader {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
        Ok(request)
    }
}

/// Waits for one answer, [`ANSWER_SECONDS`] at most.
pub(crate) async fn answer<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Failure> {
    match tokio::time::timeout(Duration::from_secs(ANSWER_SECONDS), call).await {
        Ok(result) => result.map_err(|status| Failure::from_status(&status)),
        Err(_elapsed) => Err(Failure::timed_out(ANSWER_SECONDS)),
    }
}

async fn open(path: &Path) -> Result<UnixStream, ConnectError> {
    let path = path.to_owned();
    UnixStream::connect(&path).await.map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => ConnectError::Forbidden { path },
        io::ErrorKind::InvalidInput => ConnectError::PathTooLong { path },
        _ => ConnectError::Refused { path, source },
    })
}

/// HTTP/2 over the stream we checked. The connector has exactly this one stream to give away: when it
/// breaks, calls fail and the command connects, and checks, again.
async fn handshake(path: &Path, stream: UnixStream) -> Result<Connection, ConnectError> {
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_uri: http::Uri| {
        let stream = stream.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
        std::future::ready(stream)
    });
    let wait = Duration::from_secs(ANSWER_SECONDS);
    let transport = Transport::from_static("http://localhost");
    match tokio::time::timeout(wait, transport.connect_with_connector(connector)).await {
        Ok(Ok(channel)) => Ok(Connection { channel: InterceptedService::new(channel, SpiffeHeader) }),
        Ok(Err(_)) | Err(_) => Err(ConnectError::Handshake { path: path.to_owned() }),
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| format!("`{}`", path.display())).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::testing::agent::Agent;
    use super::super::testing::run;
    use super::*;
    use crate::exit::Exit;

    const STRANGER: u32 = 65_533;

    /// A fake agent's socket: listened on by a uid that is neither root nor `env.uid` (A15). Root makes
    /// one on a thread of another uid; anybody else's own socket is foreign to a pretended caller.
    fn foreign(agent: &Agent) -> (PathBuf, Env, u32, std::os::unix::net::UnixListener) {
        let socket = agent.dir.path().join("fake.sock");
        let mut env = agent.env();
        if env.uid != 0 {
            let uid = env.uid;
            env.uid += 1;
            return (socket.clone(), env, uid, std::os::unix::net::UnixListener::bind(socket).expect("bind"));
        }
        std::fs::set_permissions(agent.dir.path(), std::fs::Permissions::from_mode(0o777)).expect("chmod");
        let bind = {
            let socket = socket.clone();
            move || {
                let uid = rustix::process::Uid::from_raw(STRANGER);
                rustix::thread::set_thread_res_uid(uid, uid, uid).expect("drop root");
                std::os::unix::net::UnixListener::bind(socket).expect("bind")
            }
        };
        (socket, env, STRANGER, std::thread::spawn(bind).join().expect("thread"))
    }

    #[tokio::test]
    async fn a_strangers_socket_exits_4_and_gets_not_a_byte() {
        let agent = Agent::start();
        let (socket, env, uid, listener) = foreign(&agent);
        let socket = socket.to_str().expect("text");
        let ran = run(env, &["fetch", "jwt", "--audience", "db", "--socket", socket]).await;
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Untrusted, ""), "{ran:?}");
        assert!(ran.err.contains(socket) && ran.err.contains(&format!("uid {uid}")), "{}", ran.err);
        let (mut peer, _) = listener.accept().expect("accept");
        let mut received = Vec::new();
        io::Read::read_to_end(&mut peer, &mut received).expect("read");
        assert_eq!(received, b"", "nothing may be said to a stranger");
    }

    #[tokio::test]
    async fn a_stranger_is_not_waited_for() {
        let agent = Agent::start();
        let (socket, env, _, _listener) = foreign(&agent);
        let ran = run(env, &["fetch", "x509", "--wait", "--socket", socket.to_str().expect("text")]).await;
        assert_eq!(ran.exit, Exit::Untrusted);
    }

    #[tokio::test]
    async fn a_uid_the_user_vouches_for_is_trusted() {
        let agent = Agent::start();
        let (socket, env, uid, _listener) = foreign(&agent);
        let (socket, uid) = (socket.to_str().expect("text"), uid.to_string());
        let args = ClientArgs { socket: Some(socket.to_owned()), server_uid: None };
        let vouched = Env { server_uid: Some(uid.clone().into()), ..env.clone() };
        let connect = async |env: &Env| {
            let target = Target::resolve(&args, Which::Public, env).expect("target");
            let stream = open(Path::new(socket)).await.expect("open");
            target.check_owner(Path::new(socket), &stream)
        };
        assert!(matches!(connect(&env).await, Err(ConnectError::Untrusted { .. })));
        assert!(connect(&vouched).await.is_ok());
        let flag = ClientArgs { server_uid: uid.parse().ok(), ..args.clone() };
        let target = Target::resolve(&flag, Which::Public, &env).expect("target");
        let stream = open(Path::new(socket)).await.expect("open");
        assert!(target.check_owner(Path::new(socket), &stream).is_ok());
        let nonsense = Env { server_uid: Some("root".into()), ..env };
        let failure = Target::resolve(&args, Which::Public, &nonsense).expect_err("not a uid");
        assert_eq!(failure.exit, Exit::Usage);
    }

    #[tokio::test]
    async fn a_socket_that_does_not_answer_like_an_agent_is_unreachable() {
        let agent = Agent::start();
        let socket = agent.dir.path().join("silent.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("bind");
        let closer = std::thread::spawn(move || drop(listener.accept()));
        let ran = run(agent.env(), &["healthcheck", "--socket", socket.to_str().expect("text")]).await;
        assert_eq!(ran.exit, Exit::Unreachable, "{ran:?}");
        closer.join().expect("thread");
    }

    #[tokio::test]
    async fn a_path_no_socket_can_have_is_a_usage_error() {
        let long = format!("/{}", "x".repeat(200));
        let ran = run(super::super::testing::empty_env(), &["healthcheck", "--socket", &long]).await;
        assert_eq!(ran.exit, Exit::Usage);
        assert!(ran.err.contains("107 bytes"), "{}", ran.err);
    }
}
