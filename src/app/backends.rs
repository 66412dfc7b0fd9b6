//! The attestors that ask somebody else, as the configuration names them, and what they do in the background.

use std::path::Path;
use std::sync::Arc;

use mayfly_attestors::kubernetes::Kubernetes;
use mayfly_attestors::{Backend, BackendTask, Docker, DockerSettings, News, Systemd, Tell};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinSet;

use crate::api::plugin::Plugin;
use crate::config::{self, AttestSettings, Enabled};
use crate::drain::Watch;
use crate::workload::Workloads;

/// Back-ends that are not at work yet.
pub(super) struct Backends {
    backends: Vec<Box<dyn Backend>>,
    tasks: Vec<BackendTask>,
    news: UnboundedReceiver<News>,
}

impl Backends {
    pub(super) fn new(attest: &AttestSettings, kubernetes: Option<&Kubernetes>) -> Self {
        let (sender, news) = unbounded_channel();
        // An error means that the agent ends.
        let tell: Tell = Arc::new(move |one| drop(sender.send(one)));
        let mut all = Self {
            backends: kubernetes.map(Kubernetes::backends).unwrap_or_default(),
            tasks: Vec::new(),
            news,
        };
        if attest.docker.enabled {
            let engines = &attest.docker;
            let settings = DockerSettings {
                docker: Some(engines.socket.clone()),
                podman: Some(engines.podman_socket.clone()),
                env: engines.env_selectors.clone(),
                deadline: attest.deadline,
            };
            let (docker, tasks) = Docker::new(settings, &tell);
            all.backends.push(Box::new(docker));
            all.tasks.extend(tasks);
        }
        all.backends.extend(systemd(&attest.systemd));
        all.backends.extend(attest.plugins.iter().map(|plugin| {
            let plugin = Plugin::new(plugin.kind, plugin.socket.clone(), plugin.deadline);
            Box::new(plugin) as Box<dyn Backend>
        }));
        all
    }

    /// For the attestor set; once.
    pub(super) fn take(&mut self) -> Vec<Box<dyn Backend>> {
        std::mem::take(&mut self.backends)
    }

    /// Sets the background to work, until the drain starts.
    pub(super) fn run(self, workloads: &Workloads, tasks: &mut JoinSet<()>, watch: &Watch) {
        for task in self.tasks {
            let mut drain = watch.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = task => {}
                    () = drain.stopping() => {}
                }
            });
        }
        let (workloads, mut news, mut drain) = (workloads.clone(), self.news, watch.clone());
        tasks.spawn(async move {
            loop {
                tokio::select! {
                    one = news.recv() => match one {
                        Some(one) => workloads.on_news(&one),
                        None => return,
                    },
                    () = drain.stopping() => return,
                }
            }
        });
    }
}

/// Units, where systemd runs the machine. A bus that does not answer is asked again with each process.
fn systemd(settings: &config::SystemdSettings) -> Option<Box<dyn Backend>> {
    let on = match settings.enabled {
        Enabled::On => true,
        Enabled::Off => false,
        Enabled::Auto => Path::new("/run/systemd/system").is_dir(),
    };
    on.then(|| Box::new(Systemd::new(settings.bus.clone())) as Box<dyn Backend>)
}
