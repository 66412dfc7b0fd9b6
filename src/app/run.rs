//! Runs a built agent: starts what serves, waits for signals, drains.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mayfly_attestors::{ExecWatch, Host, Process};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic_health::server::HealthReporter;

use super::build::{Agent, Runtimes, wide};
use super::follow::Follower;
use super::signals::{Signals, Told};
use super::sockets::{Guarded, Socket};
use super::{StartError, banner, heart, kubernetes};
use crate::api::launch::{LaunchParts, LaunchSocket, LaunchThread};
use crate::api::limits::Admission as RateLimit;
use crate::api::listener::{AcceptSettings, AcceptThread, Accepted, Bound, ConnectionLimits, ContainerOf};
use crate::api::metrics::Metrics;
use crate::api::peer::{Cut, Peer};
use crate::api::sds::Sds;
use crate::api::serve::{self, ServeLimits};
use crate::api::{Gate, health, routes};
use crate::audit::{self, Event};
use crate::clock::SystemClock;
use crate::config::Config;
use crate::drain::{self, Watch};
use crate::exit::Exit;
use crate::manager::{Manager, Pidfds};
use crate::ready::Readiness;
use crate::web::TcpServer;
use crate::workload::Workloads;

/// What was started.
struct Running {
    tasks: JoinSet<()>,
    metrics: Metrics,
    /// Who loads again at SIGHUP.
    reload: Vec<Arc<Notify>>,
    /// Connections that could not end in time.
    cut_off: Arc<AtomicUsize>,
    /// Dropping them closes the sockets.
    accepting: Vec<AcceptThread>,
    /// Dropping it ends the watch for exec.
    _exec_watch: ExecWatch,
    /// Dropping it closes the launch socket.
    launches: Option<LaunchThread>,
}

impl Agent {
    /// Serves until told to stop; the exit code says whether everybody could finish.
    pub(super) fn run(self, runtimes: &Runtimes, dev: bool) -> Result<Exit, StartError> {
        let audit = self.audit.clone();
        let exit = runtimes.serving.block_on(self.serve(dev))?;
        let stop = Event::AgentStop { reason: format!("told to stop, exit code {}", exit.code()) };
        runtimes.serving.block_on(async {
            // Bounded: a full disk must not keep the agent from stopping.
            tokio::time::timeout(Duration::from_secs(2), audit.record(vec![stop])).await.ok();
        });
        Ok(exit)
    }

    async fn serve(self, dev: bool) -> Result<Exit, StartError> {
        let starting = self.readiness.pending("start");
        let mut signals = Signals::listen()?;
        let (drain, watch) = drain::channel();
        let config = self.config.clone();
        let posture = self.host.features().describe();
        let (audit, readiness) = (self.audit.clone(), self.readiness.clone());
        let (workloads, manager) = (self.workloads.clone(), self.manager.clone());
        let mut running = self.start(watch).await?;
        drop(starting);
        audit.note(vec![Event::AgentStart { version: env!("CARGO_PKG_VERSION").to_owned(), posture }]);
        announce(&config, dev, &readiness, &manager).await;
        loop {
            match signals.next().await {
                Told::Stop(signal) => {
                    tracing::info!(signal, "stopping");
                    break;
                }
                Told::Reload => {
                    audit.reopen();
                    running.reload.iter().for_each(|one| one.notify_one());
                }
            }
        }
        manager.stopping();
        if manager.keeps() {
            // Whoever calls from here on waits in the kernel's queue for the next start.
            running.accepting.clear();
        }
        // What was just revoked goes out, and into the audit log, before the end.
        tokio::time::timeout(Duration::from_secs(1), workloads.flush()).await.ok();
        readiness.withdraw("stopping", "told to stop");
        // A little more than the connections have, so that those cut off are counted.
        let drained = drain.drain(config.shutdown.grace + Duration::from_millis(500)).await;
        running.accepting.clear();
        drop(running.launches.take());
        running.tasks.abort_all();
        let cut_off = running.cut_off.load(Ordering::Acquire);
        Ok(if drained && cut_off == 0 { Exit::Ok } else { Exit::CutOff })
    }

    /// Everybody who died while the agent was down is refused before the first connection is accepted.
    async fn start(mut self, watch: Watch) -> Result<Running, StartError> {
        let rate = Arc::new(RateLimit::new(self.rate_limits()));
        let gate = Gate::new(self.workloads.clone(), Arc::clone(&rate), Arc::clone(&self.clock));
        let web = super::web::bind(&super::web::WebParts {
            config: &self.config,
            workloads: &self.workloads,
            authorities: &self.authorities,
            clock: &self.clock,
            readiness: &self.readiness,
            watch: &watch,
            attestations: &rate,
        })?;
        let sds = Sds::new(self.config.sds.clone(), &self.clock, self.workloads.trust());
        let sources = Arc::new(self.sources(web.listeners.clone(), sds.clone()));
        let metrics = Metrics::new(Arc::clone(&sources), self.audit.clone());
        let status: crate::api::admin::StatusSource = Arc::new(move || sources.status());
        let (public, public_health) =
            routes::public(&gate, &self.clock, &watch, self.config.jwt.max_audiences, &sds)?;
        let (admin, admin_health) = self.admin_routes(status, &watch)?;
        let mut tasks = JoinSet::new();
        self.follow_concerns(&mut tasks, &watch);
        // Before the leases of the run before are looked at: their pods must be known for that.
        self.follow_backends(&mut tasks, &watch);
        let restored = self.workloads.restore(std::mem::take(&mut self.rows), &self.pidfds).await;
        self.pidfds = Pidfds::default();
        self.manager.settle();
        tracing::info!(%restored, "leases and tasks of the run before");
        let entries = Follower::new(self.entries, self.readiness.clone(), self.audit.clone(), watch.clone());
        self.audit.note(self.policies.loaded().into_iter().collect());
        let policies =
            Follower::new(self.policies, self.readiness.clone(), self.audit.clone(), watch.clone());
        let reload = vec![entries.trigger(), policies.trigger()];
        tasks.spawn(entries.run());
        tasks.spawn(policies.run());
        tasks.spawn(super::policy::follow_flag(self.config.clone(), self.workloads.clone(), watch.clone()));
        tasks.spawn(self.workloads.clone().follow_entries(watch.clone()));
        notify(&mut tasks, &self.workloads, &self.config, &watch);
        tasks.spawn(self.workloads.clone().know_own_program());
        tasks.spawn(self.federation.clone().run(watch.clone()));
        let life = heart::start(self.workloads.clone(), self.readiness.clone(), self.manager.clone())?;
        let (probe, probe_health) = routes::probe();
        for reporter in [public_health, admin_health, probe_health] {
            let (readiness, life) = (self.readiness.clone(), life.clone());
            tasks.spawn(health::follow(reporter, readiness, life, watch.clone()));
        }
        let probes = super::web::bind_probes(&self.config, probe, metrics.clone())?;
        let cut_off = Arc::new(AtomicUsize::new(0));
        let (accepting, _exec_watch) = (Vec::new(), self.exec_watch);
        let launches = Some(serve_launches(self.launch, &self.workloads, &self.host)?);
        let mut running = Running { tasks, metrics, reload, cut_off, accepting, _exec_watch, launches };
        let (host, readiness, audit, manager) = (self.host, self.readiness, self.audit, self.manager);
        let shared = Shared { host, readiness, audit, watch, manager, workloads: self.workloads.clone() };
        let limits = limits(&self.config);
        running.serve(self.public, "public socket", public, connections(&self.config), limits, &shared)?;
        running.serve(self.admin, "admin socket", admin, ConnectionLimits::default(), limits, &shared)?;
        running.serve_http(self.http, web, connections(&self.config), &shared)?;
        running.serve_probes(probes, &shared.watch);
        gate.open();
        self.workloads.keep(self.custody)?;
        Ok(running)
    }
}

/// Tells people of what agents ask.
fn notify(tasks: &mut JoinSet<()>, workloads: &Workloads, config: &Config, watch: &Watch) {
    tasks.spawn(super::notify::follow(workloads.clone(), config.approvals.clone(), watch.clone()));
}

fn serve_launches(
    socket: LaunchSocket,
    workloads: &Workloads,
    host: &Arc<Host>,
) -> Result<LaunchThread, StartError> {
    let (workloads, host) = (workloads.clone(), Arc::clone(host));
    Ok(socket.serve(LaunchParts { workloads, host, clock: Arc::new(SystemClock) })?)
}

impl Agent {
    fn admin_routes(
        &self,
        status: crate::api::admin::StatusSource,
        watch: &Watch,
    ) -> Result<(Routes, HealthReporter), StartError> {
        Ok(routes::admin(&self.workloads, &self.audit, status, &self.federation, watch)?)
    }

    /// Checkpoints of the audit log, and whatever makes the agent less than ready.
    fn follow_concerns(&self, tasks: &mut JoinSet<()>, watch: &Watch) {
        tasks.spawn(super::checkpoint::follow(self.audit.clone(), self.authorities.clone(), watch.clone()));
        tasks.spawn(super::concerns::watch_validity(
            self.readiness.clone(),
            self.authorities.clone(),
            Arc::clone(&self.clock),
            watch.clone(),
        ));
        let (ledger, audit) = (self.workloads.ledger_health(), self.audit.health());
        tasks.spawn(super::concerns::follow(self.readiness.clone(), ledger, audit, watch.clone()));
    }

    fn follow_backends(&mut self, tasks: &mut JoinSet<()>, watch: &Watch) {
        if let Some(backends) = self.backends.take() {
            backends.run(&self.workloads, tasks, watch);
        }
        let Some(pods) = self.kubernetes.take() else { return };
        tasks.spawn(kubernetes::hold_until_synced(pods.clone(), self.readiness.clone(), watch.clone()));
        tasks.spawn(kubernetes::follow(pods, self.workloads.clone(), watch.clone()));
    }
}

/// What both sockets need.
struct Shared {
    host: Arc<Host>,
    readiness: Readiness,
    audit: audit::Log,
    watch: Watch,
    manager: Manager,
    workloads: Workloads,
}

impl Shared {
    /// For counting connections, where there is anybody to ask about containers.
    fn container_of(&self) -> Option<ContainerOf> {
        let workloads = self.workloads.clone();
        workloads
            .tells_containers()
            .then(|| Box::new(move |process: &Process| workloads.container_of(process)) as ContainerOf)
    }
}

impl Running {
    fn serve(
        &mut self,
        bound: (Socket, Bound),
        name: &'static str,
        routes: Routes,
        connections: ConnectionLimits,
        limits: ServeLimits,
        shared: &Shared,
    ) -> Result<(), StartError> {
        let accepted = self.accept(bound, name, connections, shared)?;
        let served =
            serve::serve(accepted, routes, limits, shared.watch.clone(), ended(shared.audit.clone()));
        let cut_off = Arc::clone(&self.cut_off);
        self.tasks.spawn(async move {
            cut_off.fetch_add(served.await, Ordering::AcqRel);
        });
        Ok(())
    }
}

impl Running {
    /// Starts to accept, to count and to guard.
    fn accept(
        &mut self,
        (socket, bound): (Socket, Bound),
        name: &'static str,
        limits: ConnectionLimits,
        shared: &Shared,
    ) -> Result<mpsc::Receiver<Accepted>, StartError> {
        let settings = AcceptSettings {
            name,
            limits,
            readiness: shared.readiness.clone(),
            on_refused: super::refused::recorder(shared.audit.clone(), Arc::clone(&shared.host)),
            container_of: shared.container_of(),
            clock: Arc::new(SystemClock),
        };
        let file = bound.file_id();
        let (thread, accepted) = bound.accept(Arc::clone(&shared.host), settings)?;
        self.metrics.watch(thread.door(name));
        if file.is_some() {
            let guarded = Guarded {
                name: socket.role_concern(),
                file,
                replacer: thread.replacer(),
                host: Arc::clone(&shared.host),
                readiness: shared.readiness.clone(),
                audit: shared.audit.clone(),
                manager: shared.manager.clone(),
            };
            self.tasks.spawn(socket.guard(guarded, shared.watch.clone()));
        }
        self.accepting.push(thread);
        Ok(accepted)
    }

    fn serve_probes(&mut self, probes: Vec<TcpServer>, watch: &Watch) {
        for server in probes {
            let served = server.serve(watch.clone());
            // Nobody waits for a probe: cutting one off is no loss.
            self.tasks.spawn(async move {
                served.await;
            });
        }
    }

    /// The Unix socket, then what else is configured.
    fn serve_http(
        &mut self,
        bound: (Socket, Bound),
        web: super::web::Web,
        connections: ConnectionLimits,
        shared: &Shared,
    ) -> Result<(), StartError> {
        let accepted = self.accept(bound, "http socket", connections, shared)?;
        let limits = crate::web::HttpLimits::default();
        let served = crate::web::serve_unix(accepted, web.site.named(), limits, shared.watch.clone());
        let cut_off = Arc::clone(&self.cut_off);
        self.tasks.spawn(async move {
            cut_off.fetch_add(served.await, Ordering::AcqRel);
        });
        for server in web.servers {
            let (served, cut_off) = (server.serve(shared.watch.clone()), Arc::clone(&self.cut_off));
            self.tasks.spawn(async move {
                cut_off.fetch_add(served.await, Ordering::AcqRel);
            });
        }
        for task in web.tasks {
            self.tasks.spawn(task);
        }
        Ok(())
    }
}

async fn announce(config: &Config, dev: bool, readiness: &Readiness, manager: &Manager) {
    // A service manager waits for this word: it is not given while something is amiss, but not withheld for
    // ever either, because a degraded agent still revokes.
    let mut concerns = readiness.subscribe();
    let ready = concerns.wait_for(std::collections::BTreeMap::is_empty);
    tokio::time::timeout(Duration::from_secs(5), ready).await.map(drop).ok();
    tracing::info!(public = %config.sockets.public.display(), admin = %config.sockets.admin.display(), "serving");
    if dev {
        banner::announce(config);
    }
    manager.ready();
}

/// Connections that we cut for cause leave a line in the audit log.
fn ended(audit: audit::Log) -> Arc<dyn serve::Ended> {
    Arc::new(move |peer: &Arc<Peer>, cut: Option<Cut>| {
        let reason = match cut {
            Some(Cut::WriterMismatch { .. }) => audit::Cut::WriterMismatch,
            Some(Cut::Overrun(_) | Cut::Greeting | Cut::Stalled) => audit::Cut::Budget,
            _ => return,
        };
        let agent = audit::Agent::new(peer.process().key(), peer.process().uid());
        audit.note(vec![Event::AgentCut { agent, reason }]);
    })
}

fn limits(config: &Config) -> ServeLimits {
    ServeLimits {
        streams: config.limits.streams_per_connection,
        grace: config.shutdown.grace,
        ..ServeLimits::default()
    }
}

fn connections(config: &Config) -> ConnectionLimits {
    ConnectionLimits {
        total: wide(config.limits.connections),
        per_uid: wide(config.limits.connections_per_uid),
        per_cgroup: wide(config.limits.connections_per_cgroup),
        reserved_for_root: wide(config.limits.reserved_for_root),
        ..ConnectionLimits::default()
    }
}
