//! `mayfly::verify` between real processes: a connection lives as long as the process that earned its
//! certificate, whoever holds the socket or a copy of the key.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use mayfly::verify::{Authorizer, Identity, RevocationPolicy, Source, State, Trust};
use mayfly_harness::tools::Tool;
use mayfly_harness::{Agent, Plan, Svid, files, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustls::{ClientConnection, StreamOwned};

use crate::support::{SHORT, agent, client, own_uid};

fn start(agent: &Agent, role: &str, address: Option<&str>) -> Tool {
    let mut command = Command::new(files::built("mayfly-echo"));
    command.arg(role).arg(agent.public()).args(address);
    Tool::spawn(command)
}

fn kill_9(pid: u32) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
}

/// Somebody else's key and certificate, in this process.
fn thief(svid: &Svid) -> Source {
    let mut trust = Trust::new();
    trust.add_authority(&"example.org".parse().unwrap(), &svid.bundle).unwrap();
    let identity =
        Identity::new(&[&svid.leaf.der], &mayfly::secret::KeyBytes::new(svid.key.clone())).unwrap();
    let source = Source::new(RevocationPolicy::permissive());
    source.publish(State { identity: Some(identity), trust: Arc::new(trust) });
    source
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

fn dial(source: &Source, address: &str) -> std::io::Result<Tls> {
    let ours = Authorizer::member_of("example.org".parse().unwrap());
    let config = source.client_config(ours).map_err(std::io::Error::other)?;
    let tls =
        ClientConnection::new(config, "x.invalid".try_into().unwrap()).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(tls, TcpStream::connect(address)?);
    round_trip(&mut stream)?;
    Ok(stream)
}

/// In TLS 1.3 a client learns with the first answer whether the server took its certificate.
fn round_trip(stream: &mut Tls) -> std::io::Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0; 1])
}

#[test]
fn a_stolen_key_is_cut_off_when_the_process_it_was_stolen_from_exits() {
    let agent = agent();
    let mut server = start(&agent, "server", None);
    let address = server.expect("listening");
    let (mut times, rounds) = (Vec::new(), 20);
    for _ in 0..rounds {
        let mut victim = client(&agent);
        let svid = victim.x509().svids.remove(0);
        let thief = thief(&svid);
        let mut stolen = dial(&thief, &address).unwrap();
        server.expect("accepted");
        round_trip(&mut stolen).unwrap();
        let killed = mayfly_harness::now();
        victim.kill();
        // Nothing is sent: the end of the connection comes by itself.
        assert!(stolen.read_exact(&mut [0; 1]).is_err(), "the connection outlived its process");
        times.push(killed.elapsed());
        assert!(server.expect("cut").ends_with(svid.serial()));
        assert!(dial(&thief, &address).is_err(), "and there is no way back");
        server.expect("refused");
    }
    times.sort();
    let (half, last) = (times[rounds / 2], times[rounds - 1]);
    mayfly_harness::figure(&format!(
        "verify: kill of the holder -> live connection cut, p50 {half:?}, max {last:?} ({rounds} x)"
    ));
}

#[test]
fn a_connection_that_was_handed_to_a_child_ends_with_the_parent() {
    let agent = agent();
    let mut server = start(&agent, "server", None);
    let address = server.expect("listening");
    let mut parent = start(&agent, "client", Some(&address));
    parent.expect("connected");
    parent.tell("hello");
    assert_eq!(parent.expect("echo"), "hello");
    parent.tell("!child");
    let child: u32 = parent.expect("child").parse().unwrap();
    let killed = mayfly_harness::now();
    parent.kill();
    server.expect("cut");
    mayfly_harness::figure(&format!(
        "verify: kill, a child holds the socket -> cut after {:?}",
        killed.elapsed()
    ));
    assert!(Path::new(&format!("/proc/{child}")).exists(), "the child still holds its copy");
    kill_9(child);
}

#[test]
fn an_exit_of_the_server_cuts_its_clients_and_a_rotation_cuts_nobody() {
    let agent = Plan::for_uids(&[own_uid()]).settings(SHORT).start();
    let mut server = start(&agent, "server", None);
    let address = server.expect("listening");
    let mut talker = start(&agent, "client", Some(&address));
    talker.expect("connected");
    let before = agent.admin().live_leases_of(talker.pid()).first().map(|lease| lease.id.clone());
    until("two rotations", || {
        let leases = agent.admin().live_leases_of(talker.pid());
        (!leases.is_empty() && leases.iter().all(|lease| Some(&lease.id) != before.as_ref())).then_some(())
    });
    talker.tell("still here");
    assert_eq!(talker.expect("echo"), "still here");
    server.kill();
    talker.tell("and now?");
    talker.wait();
}
