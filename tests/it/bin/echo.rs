//! An echo server and client that authenticate each other by X.509-SVID: an example of `mayfly::verify` in a
//! program with blocking sockets, and the workload of its tests.
//!
//! `mayfly-echo server SOCKET` listens on a loopback port; `mayfly-echo client SOCKET ADDRESS` sends each line of
//! its standard input and reads it back. Both speak to the agent at SOCKET and print one line an event, a word
//! first. A client's line `!child` gives a copy of its connection to a child process instead, and keeps running.

use std::io::{BufRead as _, BufReader, Read as _, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use mayfly::verify::{Agent, Authorizer, Feed, Live, RevocationPolicy, Role, Source};
use rustls::{ClientConnection, ServerConnection, StreamOwned};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (role, socket) = match words.as_slice() {
        [role, socket, ..] => (*role, *socket),
        _ => bail!("usage: mayfly-echo server SOCKET | client SOCKET ADDRESS"),
    };
    let source = Source::new(RevocationPolicy::strict());
    runtime.spawn(Feed::new(source.clone(), Agent::at(socket)).run());
    runtime.block_on(source.ready());
    let ours = Authorizer::member_of("example.org".parse()?);
    match (role, words.get(2)) {
        ("server", _) => serve(&source, &ours),
        ("client", Some(address)) => talk(&source, &ours, address),
        _ => bail!("neither `server` nor `client ADDRESS`"),
    }
}

fn serve(source: &Source, ours: &Authorizer) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    say(&format!("listening {}", listener.local_addr()?))?;
    for stream in listener.incoming() {
        let (source, ours, stream) = (source.clone(), ours.clone(), stream?);
        std::thread::spawn(move || {
            if let Err(why) = echo(&source, &ours, stream) {
                say(&format!("refused {why:#}")).ok();
            }
        });
    }
    Ok(())
}

/// One connection: handshake, admission, echo until one side has enough or the certificate is revoked.
fn echo(source: &Source, ours: &Authorizer, mut stream: TcpStream) -> Result<()> {
    let mut tls = ServerConnection::new(source.server_config(ours.clone())?)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut stream)?;
    }
    let live = source.admit(tls.peer_certificates(), Role::Client, ours)?;
    live.cut_socket(&stream)?;
    say(&format!("accepted {} {}", live.peer().spiffe_id(), live.peer().leaf().serial()))?;
    let mut tls = StreamOwned::new(tls, stream);
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = tls.read(&mut buffer) {
        if tls.write_all(buffer.get(..length).unwrap_or_default()).is_err() {
            break;
        }
    }
    say(&ending(&live))
}

fn talk(source: &Source, ours: &Authorizer, address: &str) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    let name = "echo.invalid".try_into()?;
    let mut tls = ClientConnection::new(source.client_config(ours.clone())?, name)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut stream)?;
    }
    let live = Arc::new(source.admit(tls.peer_certificates(), Role::Server, ours)?);
    live.cut_socket(&stream)?;
    let inherited = stream.try_clone()?;
    say(&format!("connected {}", live.peer().spiffe_id()))?;
    let mut tls = BufReader::new(StreamOwned::new(tls, stream));
    let mut children: Vec<Child> = Vec::new();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if line == "!child" {
            children.push(heir(&inherited)?);
            say(&format!("child {}", children.last().map_or(0, Child::id)))?;
            continue;
        }
        let mut back = String::new();
        let sent = writeln!(tls.get_mut(), "{line}").and_then(|()| tls.read_line(&mut back));
        match sent {
            Ok(1..) => say(&format!("echo {}", back.trim_end()))?,
            Ok(0) | Err(_) => return say(&ending(&live)),
        }
    }
    Ok(())
}

/// A process that holds the connection open after our death.
fn heir(stream: &TcpStream) -> Result<Child> {
    rustix::io::fcntl_setfd(stream, rustix::io::FdFlags::empty())?;
    Command::new("sleep").arg("300").stdin(std::process::Stdio::null()).spawn().context("sleep")
}

fn ending(live: &Live) -> String {
    match live.is_ended() {
        true => format!("cut {}", live.peer().leaf().serial()),
        false => format!("closed {}", live.peer().leaf().serial()),
    }
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
