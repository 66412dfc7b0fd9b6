//! The Unix socket: every caller is pinned by the same accept thread as those of the gRPC sockets.

use axum::Router;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::caller::Caller;
use super::serve::{HttpLimits, connection};
use crate::api::listener::Accepted;
use crate::drain;

/// Serves until the drain starts, then lets each connection end within the grace. Answers how many had to be
/// cut off.
pub async fn serve_unix(
    mut accepted: mpsc::Receiver<Accepted>,
    app: Router,
    limits: HttpLimits,
    mut watch: drain::Watch,
) -> usize {
    let mut connections = JoinSet::new();
    let mut cut_off = 0;
    loop {
        tokio::select! {
            next = accepted.recv() => match next {
                Some(next) => {
                    connections.spawn(one(next, app.clone(), limits, watch.clone()));
                }
                None => break,
            },
            Some(done) = connections.join_next() => cut_off += usize::from(done.unwrap_or(true)),
            () = watch.stopping() => break,
        }
    }
    accepted.close();
    while let Ok(next) = accepted.try_recv() {
        connections.spawn(one(next, app.clone(), limits, watch.clone()));
    }
    while let Some(done) = connections.join_next().await {
        cut_off += usize::from(done.unwrap_or(true));
    }
    cut_off
}

async fn one(accepted: Accepted, app: Router, limits: HttpLimits, watch: drain::Watch) -> bool {
    let peer = accepted.peer().clone();
    match accepted.guard_octets(limits.write_stall) {
        Ok(guarded) => connection(guarded, Caller::Process(peer), app, limits, watch).await,
        Err(_closed) => false,
    }
}
