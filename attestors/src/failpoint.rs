//! Named points where a test may kill, pause or fail this process. Without the feature `failpoints` every call
//! is an empty function, so a release build cannot be told to do any of it.
//!
//! `MAYFLY_FAILPOINTS="name=kill;name2=pause:/dir;name3=fail;name4=fail:/dir"`: `kill` sends SIGKILL to ourselves,
//! `pause` writes `/dir/NAME.hit` and waits until `/dir/NAME.go` exists, `fail` makes [`fails`] answer true, with a
//! directory only while `/dir/NAME.fail` exists.

/// Passes the point `name`: kills or pauses this process if the environment asks for it.
#[cfg(not(feature = "failpoints"))]
pub fn hit(_name: &str) {}

/// Whether the code after the point `name` should take its failure path.
#[cfg(not(feature = "failpoints"))]
pub fn fails(_name: &str) -> bool {
    false
}

#[cfg(feature = "failpoints")]
pub use on::{fails, hit};

#[cfg(feature = "failpoints")]
mod on {
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};
    use std::sync::OnceLock;
    use std::time::Duration;

    #[derive(Debug, Eq, PartialEq)]
    pub(super) enum Action {
        Kill,
        Pause(PathBuf),
        Fail,
        FailWhile(PathBuf),
    }

    /// Passes the point `name`: kills or pauses this process if the environment asks for it.
    pub fn hit(name: &str) {
        match configured().get(name) {
            Some(Action::Kill) => kill_self(),
            Some(Action::Pause(dir)) => pause(dir, name),
            Some(Action::Fail | Action::FailWhile(_)) | None => {}
        }
    }

    /// Whether the code after the point `name` should take its failure path.
    pub fn fails(name: &str) -> bool {
        match configured().get(name) {
            Some(Action::Fail) => true,
            Some(Action::FailWhile(dir)) => dir.join(format!("{name}.fail")).exists(),
            _ => false,
        }
    }

    /// Unknown actions are dropped: a test that misspells one sees that nothing happens.
    pub(super) fn parse(text: &str) -> BTreeMap<String, Action> {
        text.split(';')
            .filter_map(|item| item.split_once('='))
            .filter_map(|(name, action)| {
                let action = match action.split_once(':') {
                    None if action == "kill" => Action::Kill,
                    None if action == "fail" => Action::Fail,
                    Some(("pause", dir)) => Action::Pause(PathBuf::from(dir)),
                    Some(("fail", dir)) => Action::FailWhile(PathBuf::from(dir)),
                    _ => return None,
                };
                Some((name.trim().to_owned(), action))
            })
            .collect()
    }

    fn configured() -> &'static BTreeMap<String, Action> {
        static POINTS: OnceLock<BTreeMap<String, Action>> = OnceLock::new();
        POINTS.get_or_init(|| parse(&std::env::var("MAYFLY_FAILPOINTS").unwrap_or_default()))
    }

    fn kill_self() {
        let pid = rustix::process::getpid();
        while rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_err() {}
    }

    fn pause(dir: &Path, name: &str) {
        // A directory that cannot be written would otherwise let the test run on as if it had paused.
        while std::fs::write(dir.join(format!("{name}.hit")), b"").is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
        while !dir.join(format!("{name}.go")).exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
#[cfg(feature = "failpoints")]
mod tests {
    use super::on::{Action, parse};

    #[test]
    fn the_documented_forms_parse_and_others_are_ignored() {
        let points = parse("a.b=kill; c=pause:/tmp/x;d=fail;e=explode;f;g=pause;h=fail:/tmp/x");
        assert_eq!(points.len(), 4);
        assert_eq!(points["h"], Action::FailWhile("/tmp/x".into()));
        assert_eq!(points["a.b"], Action::Kill);
        assert_eq!(points["c"], Action::Pause("/tmp/x".into()));
        assert_eq!(points["d"], Action::Fail);
    }
}
