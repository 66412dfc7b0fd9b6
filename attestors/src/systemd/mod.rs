//! The `systemd` attestor: which unit a process runs in.
//!
//! Two witnesses must agree: the kernel, by the process's cgroup, and the system's service manager, asked by the
//! process's pidfd where it can be. A user's own manager is never asked, because it may say what its user likes; a
//! unit of such a manager is named by the cgroup path alone, with the user's number before it, and is advice.

mod bus;
mod place;

use std::path::PathBuf;
use std::time::Duration;

use self::bus::{Bus, Unit};
use self::place::Place;
use crate::backend::{Backend, BackendFuture, Found, Silent, Subject};
use crate::origin::Origin;
use crate::text;

/// Asks the system's service manager.
#[derive(Debug)]
pub struct Systemd {
    bus: Bus,
}

impl Systemd {
    /// `socket`: the system bus, usually `/run/dbus/system_bus_socket`. Nothing is asked before a process is attested.
    pub fn new(socket: PathBuf) -> Self {
        Self { bus: Bus::new(socket) }
    }

    async fn look(&self, subject: &Subject<'_>) -> Result<Found, Silent> {
        match subject.origin() {
            Origin::Host => {}
            Origin::Container(_) => return Ok(Found::nothing("in a container: the unit is its engine's")),
            Origin::Refused(refusal) => return Ok(Found::nothing(format!("not believed: {refusal}"))),
        }
        let Some(path) = subject.cgroup_path() else {
            return Ok(Found::nothing("its place among the machine's cgroups cannot be told"));
        };
        let Some(place) = unit_at(&path) else {
            return Ok(Found::nothing("in no unit"));
        };
        let told = self.bus.unit_of(subject.process()).await?;
        Ok(judge(place, told, subject.process().pid()))
    }
}

impl Backend for Systemd {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn keys(&self) -> &'static [&'static str] {
        KEYS
    }

    fn deadline(&self) -> Duration {
        DEADLINE
    }

    fn attest<'a>(&'a self, subject: &'a Subject<'a>) -> BackendFuture<'a> {
        Box::pin(self.look(subject))
    }
}

/// Whether the attestor vouches for that key. What a user's manager calls its units is that user's to choose.
pub(crate) fn vouches(key: &str) -> bool {
    key != USER_ID && KEYS.contains(&key)
}

/// What is left in the manager's own scope is in no unit that anybody wrote.
fn unit_at(path: &[u8]) -> Option<Place> {
    place::of(path).filter(|place| place.unit != "init.scope")
}

/// Both witnesses' word.
fn judge(place: Place, told: Option<Unit>, pid: u32) -> Found {
    let Some(unit) = told else { return Found::nothing("in no unit that the service manager knows") };
    if unit.id != place.unit {
        let manager = text::of_bytes(unit.id.as_bytes());
        let why = format!("not believed: its cgroup is {}'s, the service manager says {manager}", place.unit);
        return Found::nothing(why);
    }
    let mut found = Found::default();
    found.add(KIND, "id", place.unit);
    if let Some(slice) = place.slice {
        found.add(KIND, "slice", slice);
    }
    if !unit.fragment_path.is_empty() {
        found.add(KIND, "fragment_path", text::of_bytes(unit.fragment_path.as_bytes()));
    }
    if unit.invocation.len() == INVOCATION {
        found.add(KIND, "invocation_id", text::hex(&unit.invocation));
    }
    if unit.main == Some(pid) {
        found.add(KIND, "main", "true".to_owned());
    }
    if let Some(user) = place.user {
        found.add(KIND, USER_ID, format!("{}:{}", user.uid, user.unit));
    }
    found
}

const KIND: &str = "systemd";
const USER_ID: &str = "user_id";
const KEYS: &[&str] = &["id", "fragment_path", "invocation_id", "slice", "main", USER_ID];
/// Of the whole answer.
const DEADLINE: Duration = Duration::from_secs(1);
/// Bytes of a 128-bit id.
const INVOCATION: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn place(path: &str) -> Place {
        place::of(path.as_bytes()).unwrap()
    }

    fn unit(id: &str) -> Unit {
        Unit {
            id: id.to_owned(),
            fragment_path: format!("/etc/systemd/system/{id}"),
            invocation: vec![0xab; 16],
            main: Some(7),
        }
    }

    fn shown(found: &Found) -> Vec<String> {
        found.selectors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_both_witnesses_say_becomes_selectors() {
        let web = place("/system.slice/web.service");
        let expected = [
            "systemd:id:web.service",
            "systemd:slice:system.slice",
            "systemd:fragment_path:/etc/systemd/system/web.service",
            "systemd:invocation_id:abababababababababababababababab",
            "systemd:main:true",
        ];
        assert_eq!(shown(&judge(web.clone(), Some(unit("web.service")), 7)), expected);
        // Another process of the unit: what root's file starts is the main one alone.
        assert_eq!(shown(&judge(web, Some(unit("web.service")), 8)), expected[..4]);
    }

    #[test]
    fn the_managers_own_scope_is_no_unit() {
        assert_eq!(unit_at(b"/init.scope"), None);
        let session = unit_at(b"/user.slice/user-1000.slice/session-3.scope").unwrap();
        assert_eq!(session.unit, "session-3.scope");
    }

    #[test]
    fn c04_no_witness_is_believed_alone() {
        let web = place("/system.slice/web.service");
        for (told, why) in [
            (
                Some(unit("payments.service")),
                "not believed: its cgroup is web.service's, the service manager says payments.service",
            ),
            (None, "in no unit that the service manager knows"),
        ] {
            let found = judge(web.clone(), told, 7);
            assert_eq!((found.selectors.len(), found.notes[0].as_str()), (0, why));
        }
    }

    #[test]
    fn c04_a_user_unit_gets_its_users_name_and_no_more_than_advice() {
        let path = "/user.slice/user-1000.slice/user@1000.service/app.slice/payments.service";
        let found = judge(place(path), Some(unit("user@1000.service")), 9);
        assert!(shown(&found).contains(&"systemd:user_id:1000:payments.service".to_owned()));
        assert!(!shown(&found).contains(&"systemd:id:payments.service".to_owned()));
        let strength = |key| found.selectors.iter().find(|one| one.key() == key).unwrap().strength();
        assert_eq!(strength(USER_ID), crate::Strength::Advisory);
        assert_eq!(strength("id"), crate::Strength::Controller);
    }

    #[test]
    fn what_a_unit_lacks_is_left_out() {
        let scope = place("/user.slice/user-1000.slice/session-3.scope");
        let told = Unit { id: "session-3.scope".to_owned(), ..Unit::default() };
        let expected = ["systemd:id:session-3.scope", "systemd:slice:user-1000.slice"];
        assert_eq!(shown(&judge(scope, Some(told), 7)), expected);
    }
}
