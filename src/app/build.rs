//! Puts the agent together, runs it, drains it.

use std::path::Path;
use std::sync::Arc;

use mayfly_attestors::kubernetes::Kubernetes;
use mayfly_attestors::{
    AttestSettings as AttestorSettings, AttestorSet, Backend, ExecMode, ExecWatch, Host, MeasureLimits,
    Measurer, WorkerCommand,
};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::StartError;
use super::backends::Backends;
use super::entries::Entries;
use super::kubernetes;
use super::policy::Policies;
use super::sockets::Socket;
use super::storage::{self, Records, Stored};
use super::tasks;
use crate::api::launch::LaunchSocket;
use crate::api::limits::AdmissionLimits;
use crate::api::listener::{Access, Bound};
use crate::api::overview::{Listener, Sources};
use crate::api::sds::Sds;
use crate::api::wire::budget::Rate;
use crate::audit::{self, Event};
use crate::authority::{Authorities, AuthorityKind, Custody, JwsAuthority};
use crate::clock::{Clock, SystemClock, unix_seconds};
use crate::config::{Config, EntriesFrom, Storage};
use crate::federation::{self, Federation};
use crate::issue::wit::Recipe;
use crate::ledger::Row;
use crate::manager::{Manager, Passed, Pidfds};
use crate::policy::Engine;
use crate::ready::Readiness;
use crate::trust::{BundleStore, TrustSnapshot};
use crate::workload::{Parts, RevokerSettings, Settings, Workloads};

/// A fully wired agent: sockets are bound, nothing is served.
pub(super) struct Agent {
    pub(super) config: Config,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) host: Arc<Host>,
    pub(super) readiness: Readiness,
    pub(super) audit: audit::Log,
    pub(super) workloads: Workloads,
    pub(super) authorities: Authorities,
    pub(super) rows: Vec<Row>,
    pub(super) custody: Custody,
    pub(super) entries: Entries,
    pub(super) policies: Policies,
    pub(super) federation: Federation,
    /// On a node of Kubernetes.
    pub(super) kubernetes: Option<Kubernetes>,
    /// Taken when they begin to work.
    pub(super) backends: Option<Backends>,
    /// Must live as long as the agent serves: dropping it ends the watch.
    pub(super) exec_watch: ExecWatch,
    pub(super) public: (Socket, Bound),
    pub(super) admin: (Socket, Bound),
    pub(super) http: (Socket, Bound),
    pub(super) manager: Manager,
    /// Kept by the manager since the run before.
    pub(super) pidfds: Pidfds,
    pub(super) launch: LaunchSocket,
}

/// The runtimes, kept apart from the agent: neither may be dropped inside the other.
pub(super) struct Runtimes {
    pub(super) serving: Runtime,
    issuing: Runtime,
}

impl Runtimes {
    /// Two threads each: what clients do to one never holds up the other.
    pub(super) fn new() -> Result<Self, StartError> {
        Ok(Self { serving: runtime("serving")?, issuing: runtime("issuing")? })
    }
}

impl Agent {
    pub(super) fn build(
        config: Config,
        runtimes: &Runtimes,
        mut passed: Passed,
        manager: Manager,
    ) -> Result<Self, StartError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let readiness = Readiness::default();
        let host = Host::probe(&config.attest.proc)?;
        // The development agent serves its own user where it is, be that a container.
        if matches!(config.storage, Storage::Disk(_)) {
            host.serves_whole_machine()?;
        }
        describe(&host);
        let (entries, in_force) = Entries::first(&config)?;
        let policies = Policies::first(&config)?;
        let stored = storage::open(&config, clock.wall())?;
        let audit = open_audit(&config, &host, &clock)?;
        let [public, admin, http] = listen(&config, &host, &mut passed, &manager)?;
        let launch = LaunchSocket::bind(&config.sockets.public, host.features())?;
        note_authorities(&audit, &stored);
        let (rows, authorities) = (stored.rows.clone(), Authorities::new(stored.authorities.clone()));
        let (custody, stored) = stored.split();
        let trust =
            watch::Sender::new(Arc::new(TrustSnapshot::new(&config.trust_domain, &authorities.current())));
        let federation = open_federation(&config, &trust, &audit, &clock);
        let kubernetes = kubernetes::build(&config.attest.kubernetes)?;
        let mut backends = Backends::new(&config.attest, kubernetes.as_ref());
        let workloads = start_workloads(
            &config,
            backends.take(),
            &host,
            &clock,
            &readiness,
            &audit,
            stored,
            &authorities,
            trust,
            in_force,
            policies.engine(),
            &runtimes.issuing,
            &manager,
        )?;
        let exec_watch = watch_exec(&host, &workloads);
        Ok(Self {
            config,
            clock,
            host,
            readiness,
            audit,
            workloads,
            authorities,
            rows,
            custody,
            entries,
            policies,
            federation,
            kubernetes,
            backends: Some(backends),
            exec_watch,
            public,
            admin,
            http,
            manager,
            pidfds: passed.pidfds(),
            launch,
        })
    }

    pub(super) fn rate_limits(&self) -> AdmissionLimits {
        let attest = &self.config.attest;
        AdmissionLimits {
            rate: Rate { per_second: attest.per_second, burst: attest.burst },
            in_flight: wide(attest.in_flight),
            ..AdmissionLimits::default()
        }
    }

    pub(super) fn sources(&self, listeners: Vec<Listener>, sds: Sds) -> Sources {
        Sources {
            config: self.config.clone(),
            host: Arc::clone(&self.host),
            exec_mode: self.exec_watch.mode().clone(),
            authorities: self.authorities.clone(),
            readiness: self.readiness.clone(),
            workloads: self.workloads.clone(),
            clock: Arc::clone(&self.clock),
            started_at: unix_seconds(self.clock.wall()),
            federation: self.federation.clone(),
            reload_error: self.entries.last_error(),
            policy_error: self.policies.last_error(),
            sds,
            listeners,
            kubernetes: self.kubernetes.clone(),
        }
    }
}

fn describe(host: &Host) {
    for sentence in host.features().describe() {
        tracing::info!(platform = sentence);
    }
    warn_of_own_uid(host);
}

/// Root may do all of this anyway; any other user's processes should not share ours.
fn warn_of_own_uid(host: &Host) {
    let uid = rustix::process::geteuid();
    if !uid.is_root() {
        let others = host.processes_of(uid.as_raw(), 8);
        if !others.is_empty() {
            tracing::warn!(uid = uid.as_raw(), pids = ?others, "other processes run as the agent's user; give it one of its own");
        }
        tracing::warn!(
            uid = uid.as_raw(),
            "the agent is not root: a workload of the same uid cannot read its memory, but can signal it and replace its \
             files and sockets"
        );
    }
}

/// In the order of the agent's fields.
fn sockets(config: &Config) -> [Socket; 3] {
    let socket = |role, path: &Path, access| Socket {
        role,
        path: path.to_owned(),
        access,
        aliases: if role == "public" { config.sockets.aliases.clone() } else { Vec::new() },
    };
    [
        socket("public", &config.sockets.public, Access::Public),
        socket("admin", &config.sockets.admin, Access::Admin),
        socket("http", &config.http.socket, Access::Public),
    ]
}

/// In the order of [`sockets`]; nothing is accepted yet.
fn listen(
    config: &Config,
    host: &Arc<Host>,
    passed: &mut Passed,
    manager: &Manager,
) -> Result<[(Socket, Bound); 3], StartError> {
    let [public, admin, http] = sockets(config).map(|socket| {
        let bound = socket.open(host, passed, manager);
        bound.map(|bound| (socket, bound))
    });
    Ok([public?, admin?, http?])
}

fn open_audit(config: &Config, host: &Arc<Host>, clock: &Arc<dyn Clock>) -> Result<audit::Log, StartError> {
    let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let settings =
        audit::LogSettings { path: Some(config.audit.path.clone()), node, boot_id: host.boot_id() };
    Ok(audit::Log::open(settings, Arc::clone(clock))?)
}

/// Has the workloads told of programs that are started, where the kernel tells.
fn watch_exec(host: &Arc<Host>, workloads: &Workloads) -> ExecWatch {
    let told = workloads.clone();
    let exec_watch = ExecWatch::start(host, Box::new(move |notice| told.on_exec(&notice)));
    if let Some(counter) = exec_watch.counter() {
        workloads.count_execs_with(counter);
    }
    match exec_watch.mode() {
        ExecMode::ProcConnector => workloads.exec_is_told(),
        ExecMode::Unavailable { why } => tracing::warn!(
            why,
            "no early word of exec: programs are only looked at again before each issue and push"
        ),
    }
    exec_watch
}

fn note_authorities(audit: &audit::Log, stored: &Stored) {
    let created = |id: &str| stored.changes.iter().any(|change| change.record.id == id);
    let set = &stored.authorities;
    let x509 = set.x509().iter().map(|one| Event::AuthorityLoaded {
        kind: AuthorityKind::X509,
        id: one.key_id().to_string(),
        algorithm: one.algorithm().to_string(),
        not_after: Some(one.not_after()),
        created: created(&one.key_id().to_string()),
    });
    let jws = |kind| {
        move |one: &Arc<JwsAuthority>| Event::AuthorityLoaded {
            kind,
            id: one.kid().to_owned(),
            algorithm: one.algorithm().to_owned(),
            not_after: Some(one.not_after()),
            created: created(one.kid()),
        }
    };
    let tokens = set.jwt().iter().map(jws(AuthorityKind::Jwt));
    audit.note(x509.chain(tokens).chain(set.wit().iter().map(jws(AuthorityKind::Wit))).collect());
}

/// Before anybody is served: the first message of a stream has the bundles that were kept.
fn open_federation(
    config: &Config,
    trust: &watch::Sender<Arc<TrustSnapshot>>,
    audit: &audit::Log,
    clock: &Arc<dyn Clock>,
) -> Federation {
    let store = match &config.storage {
        Storage::Disk(dir) => Some(BundleStore::new(dir)),
        Storage::Memory => None,
    };
    Federation::open(federation::Parts {
        own: config.trust_domain.clone(),
        relationships: config.federation.clone(),
        store,
        trust: trust.clone(),
        audit: audit.clone(),
        clock: Arc::clone(clock),
    })
}

#[expect(clippy::too_many_arguments, reason = "called once, with everything there is")]
fn start_workloads(
    config: &Config,
    backends: Vec<Box<dyn Backend>>,
    host: &Arc<Host>,
    clock: &Arc<dyn Clock>,
    readiness: &Readiness,
    audit: &audit::Log,
    stored: Records,
    authorities: &Authorities,
    trust: watch::Sender<Arc<TrustSnapshot>>,
    entries: watch::Receiver<Arc<crate::registration::EntrySet>>,
    policy: Engine,
    issuing: &Runtime,
    manager: &Manager,
) -> Result<Workloads, StartError> {
    let parts = Parts {
        host: Arc::clone(host),
        attestors: AttestorSet::new(Arc::clone(host), attest_settings(config), measurer(config))
            .with_backends(backends),
        authorities: authorities.clone(),
        ledger: stored.ledger,
        audit: audit.clone(),
        entries,
        policy,
        clock: Arc::clone(clock),
        readiness: readiness.clone(),
        issuing: issuing.handle().clone(),
        trust,
        revoked: stored.denied,
        manager: manager.clone(),
    };
    let settings = Settings {
        trust_domain: config.trust_domain.clone(),
        x509_ttl: config.x509.ttl,
        jwt_ttl: config.jwt.ttl,
        jwt_issuer: config.jwt.issuer.clone(),
        wit_ttl: config.wit.ttl,
        wit: Recipe { key: storage::wit_key_type(config), issuer: config.wit.issuer.clone() },
        status_list_uri: config.status_list_uri.clone(),
        freezes: super::policy::freezes_file(config),
        approvals: tasks::approvals(&config.approvals),
        tasks: tasks::bounds(&config.tasks),
        users: config.users.clone(),
        serves_one_user: matches!(config.entries, EntriesFrom::User { .. }),
        leases_per_uid: wide(config.limits.live_leases_per_uid),
        jwt_leases_per_workload: wide(config.limits.jwt_leases_per_workload),
    };
    let revoker = RevokerSettings {
        coalesce: config.revocation.coalesce,
        next_update: config.revocation.next_update,
        numbering: stored.numbering,
        data_dir: match &config.storage {
            Storage::Disk(dir) => Some(dir.clone()),
            Storage::Memory => None,
        },
    };
    Ok(Workloads::start(parts, settings, revoker)?)
}

fn attest_settings(config: &Config) -> AttestorSettings {
    AttestorSettings {
        deadline: config.attest.deadline,
        cgroup_root: config.attest.cgroup.mount.clone(),
        cgroup_prefix: config.attest.cgroup.prefix.clone(),
        ..AttestorSettings::default()
    }
}

fn measurer(config: &Config) -> Measurer {
    // The running program itself, even if its file has been replaced by an upgrade.
    let worker = WorkerCommand::itself("measure-worker");
    let limits = MeasureLimits {
        deadline: config.attest.hash_deadline,
        max_bytes: config.attest.hash_max_bytes,
        ..MeasureLimits::default()
    };
    Measurer::new(worker, limits)
}

fn runtime(name: &'static str) -> Result<Runtime, StartError> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(name)
        .enable_all()
        .build()?)
}

pub(super) fn wide(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
