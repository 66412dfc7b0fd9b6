//! What is tried with tokens, by the names of the threats: one kind for another (H04), and work handed on that was not
//! the agent's to hand on (H11). There is no exchange endpoint: what a user's token and a delegation may do is here.

use std::collections::BTreeMap;
use std::sync::Arc;

use mayfly::authority::{JwsUse, JwtBundle, JwtBundles};
use mayfly::clock::{Clock as _, SystemClock};
use mayfly::issue::wit::{Rules, validate};
use mayfly_harness::tasks::detail;
use mayfly_harness::{Holder, Idp, TaskRefusal, files, until};
use mayfly_proto::task as proto;
use prost::Message as _;
use serde_json::{Value, json};

use crate::children::{get, issue, lasting, offer, wanted};
use crate::http::local;
use crate::users::{PLANNER, WIKI, WORKER, World, begin, policies};

const SHELF: &str = "https://shelf.example.org";

/// Another target, of the same location's host and not the tasks'.
const MORE: &str = r#"
[[targets]]
name = "shelf"
audience = "https://shelf.example.org"
data_class = "internal"
groups = ["kb"]
owner = "docs"
binding = "none"
location = "https://shelf.example.org"
"#;

const LISTS: &str = "\n[wit]\nenabled = true\n[oidc]\nissuer = \"https://id.example.org\"\n\
                     [status_list]\nuri = \"https://id.example.org/statuslists\"\n";

fn begun(world: &World) -> usize {
    world.agent.audit().iter().filter(|line| line["event"] == "task.begin").count()
}

fn claims(token: &str) -> Value {
    use base64::Engine as _;
    let part = token.split('.').nth(1).unwrap();
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// By the library that a receiver links, with the keys that the agent publishes.
fn is_wit(token: &str, bundles: &Value) -> bool {
    let set: Value = serde_json::from_str(bundles["spiffe://example.org"].as_str().unwrap()).unwrap();
    let own = JwtBundle::of_keys(JwsUse::WitSvid, set["keys"].as_array().unwrap());
    let mut trusted = JwtBundles::default();
    trusted.insert("example.org".parse().unwrap(), Arc::new(own));
    let now = SystemClock.wall();
    validate(token, &Rules { bundles: &trusted, revoked: &|_| false, longest: None, now }).is_ok()
}

/// Every kind of token that this agent signs or takes, at every door that takes one.
#[test]
fn h04_each_kind_of_token_passes_at_its_own_doors_and_at_no_other() {
    let world = World::with(LISTS);
    let (mut planner, mut judge) = (world.start("planner"), world.start("worker"));
    let user = world.idp.token("00u1");
    let task = begin(&mut planner, &user).unwrap();
    let details = vec![detail(WIKI, &["read"])];
    let mut held = |format| -> proto::Credential {
        let request = proto::IssueRequest { details: details.clone(), ..wanted(&task, format) };
        planner.task_call("Issue", &request).unwrap()
    };
    let [access, jwt, wit] = [proto::Format::AccessToken, proto::Format::JwtSvid, proto::Format::WitSvid]
        .map(|format| held(format).token);
    let uri = claims(&access)["status"]["status_list"]["uri"].as_str().unwrap().to_owned();
    let list = local(&world.agent, uri.strip_prefix("https://id.example.org").unwrap(), &[]);
    assert_eq!(list.header("content-type"), "application/statuslist+jwt");
    let list = String::from_utf8(list.body).unwrap();
    let (before, bundles) = (begun(&world), judge.wit_bundles().unwrap());
    let kinds = [("access", access), ("jwt", jwt), ("wit", wit), ("status list", list), ("user", user)];
    let mut passed: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (kind, token) in &kinds {
        if judge.validate(WIKI, token).is_ok() {
            passed.entry("ValidateJWTSVID").or_default().push(kind);
        }
        if world.introspect(token)["active"] == true {
            passed.entry("introspection").or_default().push(kind);
        }
        if begin(&mut judge, token).is_ok() {
            passed.entry("on_behalf_of").or_default().push(kind);
        }
        if is_wit(token, &bundles) {
            passed.entry("a verifier of WIT-SVIDs").or_default().push(kind);
        }
    }
    let only = BTreeMap::from([
        ("ValidateJWTSVID", vec!["jwt"]),
        ("introspection", vec!["access", "jwt"]),
        ("on_behalf_of", vec!["user"]),
        ("a verifier of WIT-SVIDs", vec!["wit"]),
    ]);
    assert_eq!(passed, only);
    assert_eq!(begun(&world), before + 1);
    // Revocation tells nobody what it took: what has ended afterwards does.
    for (kind, token) in kinds.iter().rev() {
        let answer = local(&world.agent, "/revoke", &["-d", &format!("token={token}")]);
        assert_eq!(answer.status, 200, "{kind}");
    }
    for (_, token) in &kinds[..2] {
        world.agent.audited(&["credential.revoke", claims(token)["jti"].as_str().unwrap()]);
    }
    // What is on record later than this was said later.
    let later = begin(&mut planner, &world.idp.token("00u1")).unwrap();
    world.agent.audited(&["task.begin", &later.id]);
    let revoked: Vec<Value> =
        world.agent.audit().into_iter().filter(|line| line["event"] == "credential.revoke").collect();
    assert_eq!(revoked.len(), 2, "the access token and the JWT-SVID: {revoked:?}");
}

#[test]
fn h11_a_users_token_that_was_handed_on_begins_nothing() {
    let world = World::with("");
    let mut planner = world.start("planner");
    let actor = json!({"sub": PLANNER, "sub_profile": "ai_agent"});
    let chain = json!({"sub": "a", "act": {"sub": "b", "act": {"sub": "c", "act": {"sub": "d"}}}});
    for (name, value, why) in [
        ("act", actor.clone(), "was handed on"),
        ("act", chain, "was handed on"),
        ("act", json!({}), "was handed on"),
        ("may_act", actor, "was handed on"),
        ("sub_profile", json!("ai_agent"), "names a program"),
        ("client_id", json!("00u1"), "names a program"),
        ("cnf", json!({"jkt": "x"}), "bound to a key"),
    ] {
        let mut said = Idp::claims("00u1");
        said[name] = value;
        let refused = begin(&mut planner, &world.idp.sign(&said)).unwrap_err();
        assert_eq!((refused.code, refused.reason.as_str()), (7, "user_not_verified"), "{name}");
        world.agent.audited(&["agent.attest_denied", "\"user\"", why]);
    }
    assert_eq!(begun(&world), 0, "nothing began");
    assert!(begin(&mut planner, &world.idp.token("00u1")).is_ok());
}

/// Even where somebody has put our keys among an issuer's, and says whatever he likes of the type.
#[test]
fn h11_what_this_agent_signed_is_no_users_token_and_neither_is_one_that_lies_about_its_type() {
    let world = World::with(LISTS);
    let mut planner = world.start("planner");
    let task = begin(&mut planner, &world.idp.token("00u1")).unwrap();
    let details = vec![detail(WIKI, &["read"])];
    let formats = [proto::Format::AccessToken, proto::Format::JwtSvid, proto::Format::WitSvid];
    let own = formats.map(|format| {
        let request = proto::IssueRequest { details: details.clone(), ..wanted(&task, format) };
        planner.task_call::<proto::Credential>("Issue", &request).unwrap().token
    });
    let mut keys: Value = serde_json::from_slice(&world.idp.jwks()).unwrap();
    let ours = local(&world.agent, "/keys", &[]).json()["keys"].as_array().unwrap().clone();
    assert!(!ours.is_empty());
    keys["keys"].as_array_mut().unwrap().extend(ours);
    files::replace(&world.agent.dir().join("idp.json"), keys.to_string().as_bytes(), 0o644);
    let before = begun(&world);
    for token in &own {
        assert_eq!(begin(&mut planner, token).unwrap_err().reason, "user_not_verified");
    }
    for typ in [
        "wit+jwt",
        "wpt+jwt",
        "dpop+jwt",
        "secevent+jwt",
        "statuslist+jwt",
        "txntoken+jwt",
        "oauth-id-jag+jwt",
    ] {
        let header = json!({"alg": "ES256", "kid": "k1", "typ": typ});
        let token = world.idp.sign_under(&header, &Idp::claims("00u1"));
        assert_eq!(begin(&mut planner, &token).unwrap_err().reason, "user_not_verified", "{typ}");
    }
    world.agent.audited(&["agent.attest_denied", "of a type that `types` does not name"]);
    assert_eq!(begun(&world), before);
    assert!(begin(&mut planner, &world.idp.token("00u1")).is_ok(), "the file is still read");
}

fn hand_on(
    parent: &proto::Task,
    from: &mut Holder,
    to: &mut Holder,
    name: &str,
) -> Result<proto::Task, TaskRefusal> {
    let offered: proto::Delegation = from.task_call("Delegate", &offer(parent, name, ""))?;
    to.task_call("Join", &proto::JoinRequest { delegation_id: offered.id, ..Default::default() })
}

/// How many actors are nested in a token.
fn depth(act: &Value) -> u32 {
    act.as_object().map_or(0, |act| 1 + act.get("act").map_or(0, depth))
}

#[test]
fn h11_a_chain_ends_at_three_and_its_tokens_name_all_of_it() {
    let world = World::with("");
    let mut agents = ["planner", "worker", "planner", "worker", "planner"].map(|name| world.start(name));
    let names = [PLANNER, WORKER, PLANNER, WORKER, PLANNER];
    let mut task = begin(&mut agents[0], &world.idp.token("00u1")).unwrap();
    for at in 0..4_u32 {
        let n = at as usize;
        assert_eq!((task.depth, task.chain.len()), (at, n + 1));
        let said = world.introspect(&issue(&mut agents[n], &task).unwrap().token);
        assert_eq!((said["sub"].as_str(), depth(&said["act"])), (Some("00u1"), at + 1), "{said}");
        assert_eq!(said["act"]["sub"], names[n], "outermost is who acts now");
        assert_eq!(said["txn"], task.root.as_str());
        let [above, below] = &mut agents[n..=n + 1] else { panic!("five of them") };
        match hand_on(&task, above, below, names[n + 1]) {
            Ok(child) => task = child,
            Err(refused) => {
                assert_eq!((at, refused.reason.as_str()), (3, "limit_depth"));
                return;
            }
        }
    }
    panic!("a fifth of the chain");
}

#[test]
fn h11_a_child_asks_for_no_other_audience_and_no_more_than_it_was_given() {
    let world = World::with("");
    world.agent.write_catalogue(&policies().more(MORE).catalogue);
    let (mut planner, mut worker) = (world.start("planner"), world.start("worker"));
    let root = begin(&mut planner, &world.idp.token("00u1")).unwrap();
    for details in [
        vec![detail(SHELF, &["read"])],
        vec![detail(WIKI, &["read"]), detail(SHELF, &["read"])],
        vec![detail(WIKI, &["read", "delete"])],
        vec![detail("https://wiki.example.org:8443", &["read"])],
    ] {
        let wider = proto::DelegateRequest { details, ..offer(&root, WORKER, "") };
        let refused = planner.task_call::<proto::Delegation>("Delegate", &wider).unwrap_err();
        assert_eq!(refused.reason, "exceeds_parent");
    }
    let child = hand_on(&root, &mut planner, &mut worker, WORKER).unwrap();
    let mut ask = |details: Vec<proto::AuthorizationDetail>, audience: &[&str]| {
        let audience = audience.iter().map(|&one| one.to_owned()).collect();
        let request = proto::IssueRequest { details, audience, ..wanted(&child, proto::Format::AccessToken) };
        worker.task_call::<proto::Credential>("Issue", &request).map_err(|refused| refused.reason)
    };
    // The set with the new target is in force as soon as somebody is refused by it and not for want of it.
    until("the target is known", || {
        (ask(Vec::new(), &[SHELF]) == Err("not_granted".to_owned())).then_some(())
    });
    for (details, audience, why) in [
        (vec![detail(SHELF, &["read"])], &[SHELF][..], "not_granted"),
        (vec![detail(WIKI, &["write"])], &[WIKI], "not_granted"),
        (vec![detail(WIKI, &["read", "write"])], &[WIKI], "not_granted"),
        (Vec::new(), &[WIKI, SHELF], "one_audience_per_credential"),
        (Vec::new(), &[WIKI, WIKI], "one_audience_per_credential"),
    ] {
        assert_eq!(ask(details, audience).unwrap_err(), why, "{audience:?}");
    }
    let given = ask(Vec::new(), &[WIKI]).unwrap();
    let said = world.introspect(&given.token);
    assert_eq!((said["aud"].as_str(), said["scope"].as_str()), (Some(WIKI), Some("read")));
}

/// Nothing that a child can say names another user than its parent's.
#[test]
fn h11_a_child_cannot_be_given_another_user() {
    let world = World::with("");
    let (mut planner, mut worker) = (world.start("planner"), world.start("worker"));
    let root = begin(&mut planner, &world.idp.token("00u1")).unwrap();
    let bob = world.idp.token("00u2");
    // As the field is called in `Begin`, behind a request that is good.
    let with_bob = |request: Vec<u8>| {
        let begin = proto::BeginRequest { on_behalf_of: bob.clone(), ..Default::default() };
        let mut field = begin.encode_to_vec();
        // Its number is taken in these messages, or unknown: 7 becomes 107.
        assert_eq!(field[0], 7 << 3 | 2);
        field.splice(0..1, [0xda, 0x06]);
        [request, field].concat()
    };
    let delegate = with_bob(offer(&root, WORKER, "").encode_to_vec());
    let refused = planner.task_call_raw::<proto::Delegation>("Delegate", &delegate).unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (3, "malformed"));
    let brief = proto::DelegateRequest { ttl: lasting(60), ..offer(&root, WORKER, "") };
    let offered: proto::Delegation = planner.task_call("Delegate", &brief).unwrap();
    let join = proto::JoinRequest { delegation_id: offered.id, ..Default::default() };
    let refused = worker.task_call_raw::<proto::Task>("Join", &with_bob(join.encode_to_vec())).unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (3, "malformed"));
    let child: proto::Task = worker.task_call("Join", &join).unwrap();
    assert_eq!(child.on_behalf_of, root.on_behalf_of);
    let renew = proto::RenewRequest { task_id: child.id.clone(), ..Default::default() };
    let refused = worker.task_call_raw::<proto::Task>("Renew", &with_bob(renew.encode_to_vec())).unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (3, "malformed"));
    worker.task_call::<proto::Task>("Renew", &renew).unwrap();
    assert_eq!(get(&mut worker, &child).unwrap().on_behalf_of, root.on_behalf_of, "as before");
    let issue_raw = with_bob(wanted(&child, proto::Format::AccessToken).encode_to_vec());
    let refused = worker.task_call_raw::<proto::Credential>("Issue", &issue_raw).unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (3, "malformed"));
    assert_eq!(world.introspect(&issue(&mut worker, &child).unwrap().token)["sub"], "00u1");
}
