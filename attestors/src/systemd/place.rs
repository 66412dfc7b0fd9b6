//! Which unit a cgroup path belongs to: systemd's layout, read from the left.

/// What a path says by itself. Every directory down to the unit's is the system manager's to make.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Place {
    /// The outermost unit that is no slice.
    pub unit: String,
    /// The slice that it is in.
    pub slice: Option<String>,
    /// The unit of a user's own manager below that, which says about itself what it likes.
    pub user: Option<UserUnit>,
}

/// A unit that a user's manager made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct UserUnit {
    /// Whose manager: root's unit says so.
    pub uid: u32,
    /// What that manager calls it.
    pub unit: String,
}

/// `None` for a path that is no unit's.
pub(super) fn of(path: &[u8]) -> Option<Place> {
    let path = std::str::from_utf8(path).ok()?;
    let mut parts = path.split('/').filter(|part| !part.is_empty()).map(unescaped);
    let (unit, slice) = below_slices(&mut parts)?;
    let user = manager_of(&unit).and_then(|uid| {
        let (unit, _) = below_slices(&mut parts)?;
        Some(UserUnit { uid, unit })
    });
    Some(Place { unit, slice, user })
}

/// The first unit that is no slice, and the slice it is in.
fn below_slices<'a>(parts: &mut impl Iterator<Item = &'a str>) -> Option<(String, Option<String>)> {
    let mut slice = None;
    for part in parts {
        if !is_name(part) {
            return None;
        }
        match part.rsplit_once('.')?.1 {
            "slice" => slice = Some(part.to_owned()),
            "service" | "scope" | "socket" | "mount" | "swap" => return Some((part.to_owned(), slice)),
            _ => return None,
        }
    }
    None
}

/// systemd puts a `_` before names that would be the kernel's own files.
fn unescaped(part: &str) -> &str {
    part.strip_prefix('_').unwrap_or(part)
}

/// systemd's rule for names of units, at most 255 bytes.
fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    name.len() <= 255 && name.bytes().all(plain) && !name.starts_with('.')
}

/// `user@1000.service` is the manager of that user.
fn manager_of(unit: &str) -> Option<u32> {
    let number = unit.strip_prefix("user@")?.strip_suffix(".service")?;
    let uid = number.parse::<u32>().ok()?;
    (uid.to_string() == number).then_some(uid)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(path: &str) -> Option<Place> {
        of(path.as_bytes())
    }

    fn plain(unit: &str, slice: &str) -> Option<Place> {
        let slice = (!slice.is_empty()).then(|| slice.to_owned());
        Some(Place { unit: unit.to_owned(), slice, user: None })
    }

    #[test]
    fn the_outermost_unit_counts_whatever_is_below_it() {
        assert_eq!(found("/system.slice/web.service"), plain("web.service", "system.slice"));
        let instance = plain("agent@7.service", "system-agent.slice");
        assert_eq!(found("/system.slice/system-agent.slice/agent@7.service"), instance);
        assert_eq!(found("/init.scope"), plain("init.scope", ""));
        let session = plain("session-3.scope", "user-1000.slice");
        assert_eq!(found("/user.slice/user-1000.slice/session-3.scope"), session);
        for below in ["inner", "payments.service", "system.slice/payments.service"] {
            let path = format!("/system.slice/web.service/{below}");
            assert_eq!(found(&path), plain("web.service", "system.slice"));
        }
        assert_eq!(found("/system.slice/_cpu.service"), plain("cpu.service", "system.slice"));
    }

    /// C04: whoever has a manager of their own may call units what they like.
    #[test]
    fn c04_a_user_unit_is_its_users_and_never_the_machines() {
        let path = "/user.slice/user-1000.slice/user@1000.service/app.slice/payments.service";
        let user = |unit: &str| Some(UserUnit { uid: 1000, unit: unit.to_owned() });
        let manager = plain("user@1000.service", "user-1000.slice").unwrap();
        assert_eq!(found(path), Some(Place { user: user("payments.service"), ..manager }));
        let twice = found("/user.slice/user-1000.slice/user@1000.service/user@0.service/app.slice/x.service");
        assert_eq!(twice.unwrap().user, user("user@0.service"));
        for odd in ["user@01000.service", "user@-1.service", "user@.service", "user@a.service"] {
            assert_eq!(found(&format!("/user.slice/{odd}/x.service")), plain(odd, "user.slice"));
        }
    }

    #[test]
    fn what_is_no_unit_is_none() {
        for path in [
            "/",
            "",
            "/system.slice",
            "/kubepods/burstable/pod1/abc",
            "/docker/abc",
            "/system.slice/web",
            "/system.slice/web.timer",
            "/system.slice/a b.service",
            "/system.slice/.service",
            "/inner/system.slice/web.service",
            "/system.slice/we\u{301}b.service",
        ] {
            assert_eq!(found(path), None, "{path}");
        }
        assert_eq!(of(b"/system.slice/\xff.service"), None);
        assert_eq!(found(&format!("/system.slice/{}.service", "a".repeat(248))), None);
    }

    proptest! {
        /// Nothing that a process makes below its own unit changes what the path says of that unit.
        #[test]
        fn no_path_below_a_unit_changes_it(below in "[ -~]{0,80}") {
            let place = of(format!("/system.slice/web.service/{below}").as_bytes()).unwrap();
            prop_assert_eq!((place.unit.as_str(), place.user), ("web.service", None));
        }
    }
}
