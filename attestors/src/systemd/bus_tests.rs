//! Against a bus that is played, over a real socket. The real one is asked in `tests/packaging/machine.py`.

#![expect(clippy::disallowed_methods, reason = "the player ends with its test")]

use std::os::unix::net::UnixStream;
use std::pin::Pin;

use tokio::sync::mpsc;
use zbus::export::futures_core::Stream as _;
use zbus::message::Type;
use zbus::{Guid, MessageStream, ObjectPath, Variant};

use super::*;
use crate::testing::{end, host, running};

/// What the player of the manager does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Manager {
    /// As systemd since 253.
    Modern,
    /// As systemd before, behind a bus that forbids methods it does not know.
    Old,
    /// Says that the process is in no unit.
    NoUnit,
    /// Fails.
    Broken,
    /// Answers with another type.
    Odd,
    /// Reads, and never answers.
    Mute,
    /// Hangs up at the first question.
    Gone,
}

type Calls = mpsc::UnboundedReceiver<String>;

async fn playing(manager: Manager) -> (Bus, Calls) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (told, calls) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let server = Builder::unix_stream(theirs).server(Guid::generate()).p2p();
        let mut stream = server.build_message_stream().await.unwrap();
        while let Some(Ok(call)) = std::future::poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await {
            if call.message_type() == Type::MethodCall && !play(manager, &stream, &call, &told).await {
                return;
            }
        }
    });
    let connection = Builder::unix_stream(ours).method_timeout(Duration::from_millis(200)).build();
    let connection = connection.await.unwrap();
    (Bus { socket: "/nonexistent/bus".into(), connection: Mutex::new(Some(connection)) }, calls)
}

/// Answers one call; `false` to hang up.
async fn play(
    manager: Manager,
    stream: &MessageStream,
    call: &Message,
    told: &mpsc::UnboundedSender<String>,
) -> bool {
    let bus = Connection::from(stream);
    let header = call.header();
    let method = header.member().unwrap().to_string();
    if method == "Hello" {
        bus.reply(&header, &":1.1").await.unwrap();
        return true;
    }
    let path = ObjectPath::try_from("/org/freedesktop/systemd1/unit/web_2eservice").unwrap();
    let asked = if method == "Get" {
        let (of, name): (String, String) = call.body().deserialize().unwrap();
        format!("{of}.{name}")
    } else {
        method
    };
    told.send(asked.clone()).unwrap();
    match (manager, asked.as_str()) {
        (Manager::Mute, _) => {}
        (Manager::Gone, _) => return false,
        (Manager::Broken, _) => {
            bus.reply_error(&header, "org.freedesktop.DBus.Error.NoReply", &"down").await.unwrap();
        }
        (Manager::NoUnit, _) => bus.reply_error(&header, NO_UNIT, &"none").await.unwrap(),
        (Manager::Odd, "GetUnitByPIDFD") => bus.reply(&header, &7_u32).await.unwrap(),
        (Manager::Old, "GetUnitByPIDFD") => {
            bus.reply_error(&header, "org.freedesktop.DBus.Error.AccessDenied", &"no").await.unwrap();
        }
        (_, "GetUnitByPIDFD") => {
            assert_eq!(call.data().fds().len(), 1, "the process itself is shown, not its number");
            bus.reply(&header, &(path, "web.service", vec![0xab_u8; 16])).await.unwrap();
        }
        (_, "GetUnitByPID") => bus.reply(&header, &path).await.unwrap(),
        (_, property) => {
            let value = match property.rsplit_once('.').unwrap().1 {
                "Id" => Variant::from("web.service"),
                "FragmentPath" => Variant::from("/etc/systemd/system/web.service"),
                "InvocationID" => Variant::from(vec![0xab_u8; 16]),
                "MainPID" => Variant::from(77_u32),
                other => panic!("{other} was asked for"),
            };
            bus.reply(&header, &value).await.unwrap();
        }
    }
    true
}

async fn ask_about_sleeper(manager: Manager) -> (Result<Option<Unit>, Silent>, Vec<String>) {
    let (child, process) = running(std::process::Command::new("sleep").arg("60"), "sleep");
    let (bus, mut calls) = playing(manager).await;
    let answer = bus.unit_of(&process).await;
    end(child);
    drop(bus);
    let mut seen = Vec::new();
    while let Ok(call) = calls.try_recv() {
        seen.push(call);
    }
    (answer, seen)
}

fn web() -> Unit {
    Unit {
        id: "web.service".to_owned(),
        fragment_path: "/etc/systemd/system/web.service".to_owned(),
        invocation: vec![0xab; 16],
        main: Some(77),
    }
}

#[tokio::test]
async fn the_manager_is_shown_the_process_itself() {
    let (answer, calls) = ask_about_sleeper(Manager::Modern).await;
    assert_eq!(answer.unwrap(), Some(web()));
    assert!(!calls.contains(&"GetUnitByPID".to_owned()), "{calls:?}");
}

#[tokio::test]
async fn an_older_manager_is_asked_by_number() {
    let (answer, calls) = ask_about_sleeper(Manager::Old).await;
    assert_eq!(answer.unwrap(), Some(web()));
    assert_eq!(calls[..2], ["GetUnitByPIDFD", "GetUnitByPID"]);
}

#[tokio::test]
async fn a_process_in_no_unit_is_an_answer() {
    assert_eq!(ask_about_sleeper(Manager::NoUnit).await.0.unwrap(), None);
}

/// Whatever is wrong with the manager says nothing of the process.
#[tokio::test]
async fn a_manager_that_fails_is_silent() {
    for manager in [Manager::Broken, Manager::Odd, Manager::Mute, Manager::Gone] {
        let (answer, _) = ask_about_sleeper(manager).await;
        assert!(matches!(answer, Err(Silent::Because(_))), "{manager:?}: {answer:?}");
    }
}

#[tokio::test]
async fn an_answer_about_a_process_that_ended_meanwhile_counts_for_nothing() {
    for manager in [Manager::Modern, Manager::Old] {
        let (child, process) = running(std::process::Command::new("sleep").arg("60"), "sleep");
        let (bus, _calls) = playing(manager).await;
        end(child);
        let answer = bus.unit_of(&process).await;
        assert!(matches!(&answer, Err(Silent::Because(why)) if why.contains("ended")), "{answer:?}");
    }
}

/// A broken connection is not kept: the next question looks for a new one.
#[tokio::test]
async fn a_lost_connection_is_made_anew() {
    let (child, process) = running(std::process::Command::new("sleep").arg("60"), "sleep");
    let (bus, _calls) = playing(Manager::Gone).await;
    bus.unit_of(&process).await.unwrap_err();
    let again = bus.unit_of(&process).await;
    assert!(matches!(&again, Err(Silent::Because(why)) if why.contains("/nonexistent")), "{again:?}");
    end(child);
}

/// A bus that a user could have put there is not asked.
#[tokio::test]
async fn only_roots_own_bus_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bus");
    let _listener = tokio::net::UnixListener::bind(&path).unwrap();
    std::os::unix::fs::chown(&path, Some(1000), None).unwrap();
    let process = Process::of_pid(&host(), std::process::id()).unwrap();
    let answer = Bus::new(path).unit_of(&process).await;
    assert!(matches!(&answer, Err(Silent::Because(why)) if why.contains("root")), "{answer:?}");
}
