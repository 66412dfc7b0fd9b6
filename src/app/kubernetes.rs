//! Whether this is a node of Kubernetes, and where its API server is.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mayfly_attestors::kubernetes::{ApiServer, Kubernetes, KubernetesSettings, SourceSettings, SourceState};

use super::StartError;
use crate::config::{self, Enabled, Ephemeral, PodSource, node_name};
use crate::drain::Watch;
use crate::ready::Readiness;
use crate::workload::Workloads;

/// Looks pods up, where they can be.
///
/// # Errors
/// When they must be and cannot; the text says what is missing.
pub(super) fn build(settings: &config::KubernetesSettings) -> Result<Option<Kubernetes>, StartError> {
    build_in(settings, |name| std::env::var(name).ok())
}

fn build_in(
    settings: &config::KubernetesSettings,
    env: impl Fn(&str) -> Option<String>,
) -> Result<Option<Kubernetes>, StartError> {
    match (settings.enabled, resolve(settings, env)) {
        (Enabled::Off, _) => Ok(None),
        (Enabled::Auto, Err(why)) => {
            tracing::debug!(why, "pods are not looked up");
            Ok(None)
        }
        (Enabled::On, Err(why)) => Err(StartError::Kubernetes(why)),
        (_, Ok(settings)) => {
            tracing::info!(node = settings.node, "pods of this node are looked up");
            Ok(Some(Kubernetes::new(settings)))
        }
    }
}

fn resolve(
    settings: &config::KubernetesSettings,
    env: impl Fn(&str) -> Option<String>,
) -> Result<KubernetesSettings, String> {
    let node = match &settings.node_name {
        Some(name) => name.clone(),
        None => {
            let name =
                env("NODE_NAME").ok_or("neither `attest.kubernetes.node_name` nor NODE_NAME is set")?;
            node_name(&name).map_err(|why| format!("NODE_NAME {why}"))?
        }
    };
    let source = match settings.source {
        PodSource::Api => SourceSettings::Api(api_server(settings, env)?),
        PodSource::Kubelet => {
            tracing::warn!(
                "`attest.kubernetes.source = \"kubelet\"` is experimental: the kubelet's Pods API is not settled"
            );
            SourceSettings::Kubelet(settings.kubelet_socket.clone())
        }
    };
    Ok(KubernetesSettings {
        node,
        source,
        wait_pod: settings.wait_pod,
        wait_status: settings.wait_status,
        namespace_labels: settings.namespace_labels,
        ephemeral: settings.ephemeral == Ephemeral::Attest,
    })
}

fn api_server(
    settings: &config::KubernetesSettings,
    env: impl Fn(&str) -> Option<String>,
) -> Result<ApiServer, String> {
    let address = match settings.server {
        Some(address) => address,
        None => server_in(env)?,
    };
    if !settings.token_file.exists() {
        return Err(format!("there is no token of a service account in {}", settings.token_file.display()));
    }
    Ok(ApiServer { address, token_file: settings.token_file.clone(), ca_file: settings.ca_file.clone() })
}

/// Every pod is told the address of the API server's service.
fn server_in(env: impl Fn(&str) -> Option<String>) -> Result<SocketAddr, String> {
    let host = env("KUBERNETES_SERVICE_HOST")
        .ok_or("neither `attest.kubernetes.server` nor KUBERNETES_SERVICE_HOST is set")?;
    let address: IpAddr = host.trim_matches(['[', ']']).parse().map_err(|_not_an_address| {
        format!("KUBERNETES_SERVICE_HOST is the name {host:?}, and names are not looked up: write the address as `attest.kubernetes.server`")
    })?;
    let port = env("KUBERNETES_SERVICE_PORT_HTTPS").or_else(|| env("KUBERNETES_SERVICE_PORT"));
    let port =
        port.as_deref().unwrap_or("443").parse().map_err(|_no_port| "KUBERNETES_SERVICE_PORT is no port")?;
    Ok(SocketAddr::new(address, port))
}

/// Follows the pods until the drain starts.
pub(super) async fn follow(kubernetes: Kubernetes, workloads: Workloads, mut drain: Watch) {
    kubernetes.tell(Arc::new(move |news| workloads.on_news(&news)));
    tokio::select! {
        () = kubernetes.follow() => {}
        () = drain.stopping() => {}
    }
}

/// Holds readiness back until the pods of this node are known for the first time; a source that is lost later is told
/// in the status, and is no reason to send workloads elsewhere: there is nowhere else.
pub(super) async fn hold_until_synced(kubernetes: Kubernetes, readiness: Readiness, mut drain: Watch) {
    let mut source = kubernetes.source();
    loop {
        let state = source.borrow_and_update().clone();
        match state {
            SourceState::Starting(None) => readiness.raise(CONCERN, "starting"),
            SourceState::Starting(Some(why)) => readiness.raise(CONCERN, why),
            SourceState::InSync | SourceState::Lost(_) => {
                readiness.clear(CONCERN);
                return;
            }
        }
        tokio::select! {
            changed = source.changed() => if changed.is_err() { return },
            () = drain.stopping() => return,
        }
    }
}

const CONCERN: &str = "kubernetes";

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> config::KubernetesSettings {
        let text = format!("trust_domain = \"example.org\"\n[attest.kubernetes]\n{text}");
        config::from_text("f", text.as_bytes()).unwrap().attest.kubernetes
    }

    fn env<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name| pairs.iter().find(|(one, _)| *one == name).map(|(_, value)| (*value).to_owned())
    }

    const POD: [(&str, &str); 3] = [
        ("NODE_NAME", "node-1"),
        ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
        ("KUBERNETES_SERVICE_PORT", "6443"),
    ];

    #[test]
    fn it_is_automatic_where_the_node_has_a_name_and_the_agent_an_account() {
        let token = settings("token_file = \"/proc/self/status\"");
        let found = build_in(&token, env(&POD)).unwrap();
        assert!(found.is_some());
        for without in 0..2 {
            let mut pairs = POD.to_vec();
            pairs.remove(without);
            assert!(build_in(&token, env(&pairs)).unwrap().is_none(), "{pairs:?}");
        }
        assert!(build_in(&settings("token_file = \"/nowhere\""), env(&POD)).unwrap().is_none());
        assert!(
            build_in(&settings("enabled = \"off\"\ntoken_file = \"/proc/self/status\""), env(&POD))
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn where_it_must_be_what_is_missing_is_said() {
        let refused = |text: &str, pairs: &[(&str, &str)]| {
            build_in(&settings(&format!("enabled = \"on\"\n{text}")), env(pairs)).unwrap_err().to_string()
        };
        assert!(refused("", &[]).contains("NODE_NAME"));
        assert!(refused("", &[("NODE_NAME", "A_B")]).contains("is no name of a node"));
        assert!(refused("node_name = \"n\"", &[]).contains("KUBERNETES_SERVICE_HOST"));
        let named = [("KUBERNETES_SERVICE_HOST", "api.example")];
        assert!(refused("node_name = \"n\"", &named).contains("names are not looked up"));
        assert!(
            refused("token_file = \"/nowhere\"", &POD).contains("no token of a service account in /nowhere")
        );
    }

    #[test]
    fn addresses_come_from_the_file_first() {
        let found =
            resolve(&settings("server = \"https://[::1]:1\"\ntoken_file = \"/proc/self/status\""), env(&POD))
                .unwrap();
        let SourceSettings::Api(server) = found.source else { panic!("{:?}", found.source) };
        assert_eq!(server.address, "[::1]:1".parse().unwrap());
        let v6 = [("NODE_NAME", "n"), ("KUBERNETES_SERVICE_HOST", "fd00::1")];
        let found = resolve(&settings("token_file = \"/proc/self/status\""), env(&v6)).unwrap();
        let SourceSettings::Api(server) = found.source else { panic!("{:?}", found.source) };
        assert_eq!(server.address, "[fd00::1]:443".parse().unwrap());
    }

    /// It needs neither an address nor an account.
    #[test]
    fn the_kubelet_is_asked_where_the_file_says_so() {
        let node = [("NODE_NAME", "n")];
        let found = resolve(&settings("source = \"kubelet\"\nkubelet_socket = \"/k\""), env(&node)).unwrap();
        assert_eq!(found.source, SourceSettings::Kubelet("/k".into()));
        assert!(resolve(&settings("source = \"kubelet\""), env(&[])).unwrap_err().contains("NODE_NAME"));
    }
}
