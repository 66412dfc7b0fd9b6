//! What an engine says of a container, as selectors. Pure; nothing of the answer is believed that does not fit what
//! was asked.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::backend::Found;
use crate::origin::ContainerId;
use crate::text;

/// The parts of `GET /containers/ID/json` that are used. Names are the engine's.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Inspected {
    id: String,
    /// `/web`.
    name: String,
    /// The image's own digest, whatever it is called now.
    image: String,
    state: State,
    config: Config,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    running: bool,
    pid: u32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    /// As it was named when the container was made.
    #[serde(default)]
    image: String,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    env: Option<Vec<String>>,
}

/// Why an answer is not taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Odd {
    /// Not JSON of the form that every engine sends.
    Form,
    /// About another container.
    OtherId,
    /// The engine says that it does not run, and one of its processes does.
    NotRunning,
}

impl Inspected {
    /// Reads an answer about `id`.
    pub(super) fn read(body: &[u8], id: &ContainerId) -> Result<Self, Odd> {
        let read: Self = serde_json::from_slice(body).map_err(|_not_that_form| Odd::Form)?;
        // A container may be *named* like another one's id, and is found by it.
        match read {
            read if ContainerId::parse(read.id.as_bytes()) != Some(*id) => Err(Odd::OtherId),
            read if !read.state.running || read.state.pid == 0 => Err(Odd::NotRunning),
            read => Ok(read),
        }
    }

    /// The number of its first process, as the engine counts.
    pub(super) fn init(&self) -> u32 {
        self.state.pid
    }

    /// Its selectors. `env` names the environment variables that may become some: the others may be secrets.
    pub(super) fn selectors(&self, env: &[String]) -> Found {
        let mut found = Found::default();
        let of_label = |name: &str| self.config.labels.as_ref().and_then(|labels| labels.get(name)).cloned();
        let name = self.name.strip_prefix('/').unwrap_or(&self.name).to_owned();
        for (key, value) in [
            ("image_id", Some(self.config.image.clone())),
            ("image_config_digest", digest(&self.image)),
            ("name", Some(name)),
            ("compose_project", of_label("com.docker.compose.project")),
            ("compose_service", of_label("com.docker.compose.service")),
        ] {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                add(&mut found, key, text::of_bytes(value.as_bytes()));
            }
        }
        for variable in self.config.env.iter().flatten() {
            let name = variable.split_once('=').map_or(variable.as_str(), |(name, _)| name);
            if env.iter().any(|allowed| allowed == name) {
                add(&mut found, "env", text::of_bytes(variable.as_bytes()));
            }
        }
        // Last: there may be any number of them, and they push out nothing but each other.
        for (key, value) in self.config.labels.iter().flatten() {
            // A colon in the key would let one label pass for another.
            let key = text::of_bytes(key.as_bytes()).replace(':', "%3A");
            add(&mut found, "label", format!("{key}:{}", text::of_bytes(value.as_bytes())));
        }
        found
    }
}

/// What is too long for an entry to ask for is left out; the note does not repeat it.
fn add(found: &mut Found, key: &'static str, value: String) {
    if value.len() > MOST_BYTES {
        found.note(key, "one that is longer than a selector may be");
    } else if found.selectors.len() >= MOST_SELECTORS {
        // Once: there may be any number of them.
        if !found.notes.iter().any(|note| note.ends_with(TOO_MANY)) {
            found.note(key, TOO_MANY);
        }
    } else {
        found.add("docker", key, value);
    }
}

/// `sha256:` and 64 hex digits; Podman leaves the first part out.
fn digest(image: &str) -> Option<String> {
    let hex = image.strip_prefix("sha256:").unwrap_or(image);
    ContainerId::parse(hex.as_bytes()).map(|digits| format!("sha256:{digits}"))
}

/// One event of the engine's stream, as far as it matters.
#[derive(Debug, Deserialize)]
pub(super) struct Event {
    #[serde(rename = "Action", default)]
    action: String,
    #[serde(rename = "Actor", default)]
    actor: Actor,
}

#[derive(Debug, Default, Deserialize)]
struct Actor {
    #[serde(rename = "ID", default)]
    id: String,
}

/// What an event says about a container.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Said {
    /// It has another name.
    Renamed(ContainerId),
    /// It stopped or is gone.
    Ended(ContainerId),
}

impl Event {
    /// `None` for what changes nothing. Docker and Podman have different words.
    pub(super) fn said(&self) -> Option<Said> {
        let id = ContainerId::parse(self.actor.id.as_bytes())?;
        match self.action.as_str() {
            "rename" => Some(Said::Renamed(id)),
            "die" | "died" | "destroy" | "remove" => Some(Said::Ended(id)),
            _ => None,
        }
    }
}

/// Longest value of a selector; with its kind and key it still fits what an entry may ask for.
const MOST_BYTES: usize = 4000;
const MOST_SELECTORS: usize = 512;
const TOO_MANY: &str = "more than a container may have";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const A: &str = "4f1e0c7b9a2d3e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7";
    const B: &str = "bb9d1e2f3a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5";

    fn id(text: &str) -> ContainerId {
        ContainerId::parse(text.as_bytes()).unwrap()
    }

    fn answer() -> Value {
        json!({
            "Id": A, "Name": "/web-1", "Image": format!("sha256:{B}"), "Created": "2026-01-01T00:00:00Z",
            "State": { "Status": "running", "Running": true, "Paused": false, "Pid": 4242 },
            "Config": {
                "Image": "registry.example.org/web:1.2", "Hostname": "x",
                "Labels": {
                    "com.docker.compose.project": "shop", "com.docker.compose.service": "web",
                    "a:b": "c", "a": "b:c", "odd": "x\u{1b}[31m%\n", "empty": "",
                },
                "Env": ["PATH=/bin", "ROLE=web=1", "TOKEN=hush", "ROLE_2=x", "FLAG"],
            },
        })
    }

    fn read(value: &Value) -> Result<Inspected, Odd> {
        Inspected::read(value.to_string().as_bytes(), &id(A))
    }

    fn selectors(value: &Value, env: &[&str]) -> Vec<String> {
        let env: Vec<String> = env.iter().map(|one| (*one).to_owned()).collect();
        read(value).unwrap().selectors(&env).selectors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_the_engine_says_becomes_selectors() {
        assert_eq!(
            selectors(&answer(), &[]),
            [
                "docker:image_id:registry.example.org/web:1.2",
                &format!("docker:image_config_digest:sha256:{B}"),
                "docker:name:web-1",
                "docker:compose_project:shop",
                "docker:compose_service:web",
                "docker:label:a:b:c",
                "docker:label:a%3Ab:c",
                "docker:label:com.docker.compose.project:shop",
                "docker:label:com.docker.compose.service:web",
                "docker:label:empty:",
                "docker:label:odd:x%1B[31m%25%0A",
            ]
        );
    }

    #[test]
    fn only_named_environment_variables_are_told() {
        let told = selectors(&answer(), &["ROLE", "FLAG"]);
        let env: Vec<&String> = told.iter().filter(|one| one.starts_with("docker:env:")).collect();
        assert_eq!(env, ["docker:env:ROLE=web=1", "docker:env:FLAG"]);
        assert!(!selectors(&answer(), &[]).concat().contains("hush"));
        assert!(!format!("{:?}", read(&answer()).unwrap().selectors(&[])).contains("hush"));
    }

    #[test]
    fn c05_an_answer_about_another_container_is_none() {
        let mut other = answer();
        other["Id"] = json!(B);
        other["Name"] = json!(format!("/{A}"));
        assert_eq!(read(&other).unwrap_err(), Odd::OtherId);
        for (path, value) in [("Running", json!(false)), ("Pid", json!(0))] {
            let mut stopped = answer();
            stopped["State"][path] = value;
            assert_eq!(read(&stopped).unwrap_err(), Odd::NotRunning);
        }
        for missing in ["Id", "Name", "State", "Config", "Image"] {
            let mut cut = answer();
            cut.as_object_mut().unwrap().remove(missing);
            assert_eq!(read(&cut).unwrap_err(), Odd::Form, "{missing}");
        }
    }

    #[test]
    fn an_image_without_a_digest_has_none() {
        for (image, expected) in
            [(B, true), ("sha256:short", false), ("", false), (&format!("md5:{B}"), false)]
        {
            let mut value = answer();
            value["Image"] = json!(image);
            let told = selectors(&value, &[]);
            assert_eq!(told.contains(&format!("docker:image_config_digest:sha256:{B}")), expected, "{image}");
            assert_eq!(told.iter().any(|one| one.starts_with("docker:image_config_digest")), expected);
        }
    }

    #[test]
    fn what_no_entry_could_ask_for_is_left_out_and_not_repeated() {
        let mut value = answer();
        value["Config"]["Labels"]["secret"] = json!("s".repeat(MOST_BYTES));
        let found = read(&value).unwrap().selectors(&[]);
        assert!(!found.selectors.iter().any(|one| one.value().starts_with("secret")));
        assert_eq!(found.notes, ["label: one that is longer than a selector may be"]);
    }

    #[test]
    fn no_number_of_labels_pushes_out_what_the_engine_says_itself() {
        let mut value = answer();
        for n in 0..2 * MOST_SELECTORS {
            // Before and after every other key, in the order of the alphabet.
            value["Config"]["Labels"][format!("{}{n}", if n % 2 == 0 { "0" } else { "zz" })] = json!("x");
        }
        let (before, after) = (selectors(&answer(), &["ROLE"]), selectors(&value, &["ROLE"]));
        assert_eq!(after.len(), MOST_SELECTORS);
        let own = |all: &[String]| -> Vec<String> {
            all.iter().filter(|one| !one.starts_with("docker:label:")).cloned().collect()
        };
        assert_eq!((own(&after).len(), own(&after)), (6, own(&before)));
        let notes = read(&value).unwrap().selectors(&[]).notes;
        assert_eq!(notes, ["label: more than a container may have"]);
    }

    #[test]
    fn events_of_both_engines_are_understood() {
        let said = |action: &str, id: &str| {
            let text =
                json!({ "Type": "container", "Action": action, "Actor": { "ID": id, "Attributes": {} } });
            serde_json::from_value::<Event>(text).unwrap().said()
        };
        assert_eq!(said("rename", A), Some(Said::Renamed(id(A))));
        for ended in ["die", "died", "destroy", "remove"] {
            assert_eq!(said(ended, A), Some(Said::Ended(id(A))));
        }
        assert_eq!(said("exec_start: sh", A), None);
        assert_eq!(said("die", "short"), None);
        assert!(serde_json::from_str::<Event>("{}").unwrap().said().is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            Inspected::read(&bytes, &id(A)).ok();
        }

        /// Two labels never make one selector.
        #[test]
        fn labels_keep_apart(a in "[a-c:%]{1,4}", b in "[a-c:%]{0,4}", c in "[a-c:%]{1,4}", d in "[a-c:%]{0,4}") {
            prop_assume!((&a, &b) != (&c, &d));
            let one = |key: &str, value: &str| {
                let mut all = answer();
                all["Config"]["Labels"] = json!({ key: value });
                selectors(&all, &[]).into_iter().find(|one| one.starts_with("docker:label:"))
            };
            prop_assert_ne!(one(&a, &b), one(&c, &d));
        }
    }
}
