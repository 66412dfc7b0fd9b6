//! The service manager, asked over the system bus.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::Mutex;
use zbus::connection::Builder;
use zbus::{Connection, Error, Fd, Message, OwnedObjectPath, OwnedVariant, fdo};

use crate::backend::Silent;
use crate::process::Process;
use crate::root_socket::connect_to_root;

/// What the manager knows of a process.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Unit {
    /// Its name.
    pub id: String,
    /// The file it was read from; empty where there is none.
    pub fragment_path: String,
    /// This start of it; empty where the manager has none.
    pub invocation: Vec<u8>,
    /// The process that its file says to start, as the manager counts processes. Only services have one.
    pub main: Option<u32>,
}

/// A connection to the bus, made when it is first needed and again when it was lost.
#[derive(Debug)]
pub(super) struct Bus {
    socket: PathBuf,
    connection: Mutex<Option<Connection>>,
}

impl Bus {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket, connection: Mutex::new(None) }
    }

    /// The unit of a process; `None` when it is in none.
    pub(super) async fn unit_of(&self, process: &Process) -> Result<Option<Unit>, Silent> {
        let (connection, fresh) = self.connection().await?;
        match ask(&connection, process).await {
            // A bus that was restarted: the connection had ended before this question.
            Err(Failure::Bus(_)) if !fresh => {
                self.forget().await;
                let (connection, _) = self.connection().await?;
                self.settle(ask(&connection, process).await).await
            }
            answer => self.settle(answer).await,
        }
    }

    async fn settle(&self, answer: Result<Option<Unit>, Failure>) -> Result<Option<Unit>, Silent> {
        match answer {
            Ok(unit) => Ok(unit),
            Err(Failure::Bus(error)) => {
                self.forget().await;
                Err(silent(&error))
            }
            Err(Failure::Manager(error)) => Err(silent(&error)),
            Err(Failure::Gone) => Err("the process ended meanwhile".into()),
        }
    }

    async fn connection(&self) -> Result<(Connection, bool), Silent> {
        let mut kept = self.connection.lock().await;
        if let Some(connection) = kept.as_ref() {
            return Ok((connection.clone(), false));
        }
        let stream = connect_to_root(&self.socket).await.map_err(|error| error.silent())?;
        let stream = stream.into_std().map_err(|error| Silent::of("system bus", &error))?;
        let builder = Builder::unix_stream(stream).method_timeout(PATIENCE);
        let connection = builder.build().await.map_err(|error| silent(&error))?;
        *kept = Some(connection.clone());
        Ok((connection, true))
    }

    async fn forget(&self) {
        *self.connection.lock().await = None;
    }
}

/// Why there is no answer, and whether the connection is to blame.
#[derive(Debug)]
enum Failure {
    Bus(Error),
    Manager(Error),
    Gone,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::MethodError(..) | Error::FDO(_) => Self::Manager(error),
            error => Self::Bus(error),
        }
    }
}

async fn ask(bus: &Connection, process: &Process) -> Result<Option<Unit>, Failure> {
    let by_pidfd = call(bus, ROOT, MANAGER, "GetUnitByPIDFD", &Fd::from(process.pidfd())).await;
    let (path, told) = match by_pidfd {
        Ok(reply) => {
            let (path, id, invocation): (OwnedObjectPath, String, Vec<u8>) = reply.body().deserialize()?;
            (path, Some((id, invocation)))
        }
        // systemd before 253 lacks the method. Its bus policy then speaks first, which forbids what it does not list.
        Err(Error::FDO(error))
            if matches!(*error, fdo::Error::UnknownMethod(_) | fdo::Error::AccessDenied(_)) =>
        {
            match by_number(bus, process).await? {
                Some(path) => (path, None),
                None => return Ok(None),
            }
        }
        Err(error) => return no_unit(error),
    };
    let (id, invocation) = match told {
        Some(told) => told,
        None => (text(bus, &path, "Id").await?, bytes(bus, &path, "InvocationID").await?),
    };
    let main = if id.ends_with(".service") {
        Some(u32::try_from(property(bus, &path, SERVICE, "MainPID").await?).map_err(odd)?)
            .filter(|pid| *pid != 0)
    } else {
        None
    };
    let fragment_path = text(bus, &path, "FragmentPath").await?;
    // A number says whose it is only for as long as the process lives.
    if !process.is_alive() {
        return Err(Failure::Gone);
    }
    Ok(Some(Unit { id, fragment_path, invocation, main }))
}

/// Asks by the process's number. It stays the process's own while that lives, which is looked at afterwards.
async fn by_number(bus: &Connection, process: &Process) -> Result<Option<OwnedObjectPath>, Failure> {
    match call(bus, ROOT, MANAGER, "GetUnitByPID", &process.pid()).await {
        Ok(reply) => Ok(Some(reply.body().deserialize()?)),
        Err(error) => no_unit(error),
    }
}

fn no_unit<T>(error: Error) -> Result<Option<T>, Failure> {
    match &error {
        Error::MethodError(name, ..) if name.as_str() == NO_UNIT => Ok(None),
        _ => Err(error.into()),
    }
}

async fn text(bus: &Connection, unit: &OwnedObjectPath, name: &str) -> Result<String, Failure> {
    String::try_from(property(bus, unit, UNIT, name).await?).map_err(odd)
}

async fn bytes(bus: &Connection, unit: &OwnedObjectPath, name: &str) -> Result<Vec<u8>, Failure> {
    Vec::try_from(property(bus, unit, UNIT, name).await?).map_err(odd)
}

async fn property(
    bus: &Connection,
    unit: &OwnedObjectPath,
    of: &str,
    name: &str,
) -> Result<OwnedVariant, Failure> {
    let reply = call(bus, unit.as_str(), PROPERTIES, "Get", &(of, name)).await?;
    Ok(reply.body().deserialize()?)
}

async fn call<B>(bus: &Connection, path: &str, of: &str, method: &str, body: &B) -> Result<Message, Error>
where
    B: serde::Serialize + zbus::DynamicType,
{
    bus.call_method(Some(NAME), path, Some(of), method, body).await
}

/// An answer of another type than the manager documents.
fn odd(error: impl Into<Error>) -> Failure {
    Failure::Manager(error.into())
}

fn silent(error: &Error) -> Silent {
    match error {
        Error::InputOutput(error) => Silent::of("system bus", error),
        error => format!("system bus: {error}").into(),
    }
}

const NAME: &str = "org.freedesktop.systemd1";
const ROOT: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const NO_UNIT: &str = "org.freedesktop.systemd1.NoUnitForPID";
/// For one answer of the manager.
const PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
#[path = "bus_tests.rs"]
mod tests;
