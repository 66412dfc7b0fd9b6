//! A credential is held to the operation that was named for it: policy believed it, and what comes out says it. What
//! could not say it is not given.

use mayfly_harness::pki::claims;
use mayfly_harness::policies::WIKI;
use mayfly_harness::tasks::detail;
use mayfly_harness::{Agent, Holder, Plan, Policies, TaskRefusal};
use mayfly_proto::task as proto;
use proto::operation::Kind;
use serde_json::json;

use crate::support::{client, own_uid};

const TOOLS: &str = "https://tools.example.org";
const DB: &str = "https://db.example.org";

/// Everything hangs on what the agent says that it is about to do. (A task begins before it does anything.)
fn policies() -> Policies {
    let read = |name: &str, when: &str| {
        format!(
            "@id(\"{name}\") permit(principal, action == Mayfly::Action::\"read\", resource) when {{ context.phase == \"begin\" || {when} }};"
        )
    };
    Policies::open()
        .rule(&read("one-tool", "context has mcp && context.mcp.tool == \"search\""))
        .rule(&read("one-path", "context has http && context.http.path == \"/public\""))
        .rule(&read("one-database", "context has sql && context.sql.db == \"sales\""))
        .target("wiki", &[])
        .target("db", &[("kind", "sql")])
        .target("tools", &[("kind", "mcp")])
        .more("[targets.actions]\nread = [\"search\", \"dump_everything\"]")
}

fn world() -> (Agent, Holder, String) {
    let mut agent = Plan::for_uids(&[own_uid()]).prepare();
    agent.plan().settings += "\n[wit]\nenabled = true\n";
    policies().install(&mut agent);
    agent.launch();
    let mut holder = client(&agent);
    let details = [WIKI, TOOLS, DB].map(|place| detail(place, &["read"])).to_vec();
    let begin = proto::BeginRequest { details, ..Default::default() };
    let task: proto::Task = holder.task_call("Begin", &begin).unwrap();
    (agent, holder, task.id)
}

fn mcp(tool: &str) -> Kind {
    Kind::Mcp(proto::McpCall { server: "tools".to_owned(), tool: tool.to_owned(), ..Default::default() })
}

fn get(path: &str) -> Kind {
    Kind::Http(proto::HttpCall {
        method: "GET".to_owned(),
        host: "wiki.example.org".to_owned(),
        path: path.to_owned(),
        ..Default::default()
    })
}

fn issue(
    holder: &mut Holder,
    task: &str,
    format: proto::Format,
    audience: &str,
    kind: Kind,
) -> Result<proto::Credential, TaskRefusal> {
    let request = proto::IssueRequest {
        task_id: task.to_owned(),
        format: format.into(),
        audience: vec![audience.to_owned()],
        operation: Some(proto::Operation { kind: Some(kind) }),
        ..Default::default()
    };
    holder.task_call("Issue", &request)
}

#[test]
fn an_access_token_is_for_the_operation_that_was_named_and_for_nothing_else() {
    let (_agent, mut holder, task) = world();
    let mut token = |audience, kind| issue(&mut holder, &task, proto::Format::AccessToken, audience, kind);
    let search = token(TOOLS, mcp("search")).unwrap();
    let said = claims(&search.token);
    assert_eq!(
        said["authorization_details"],
        json!([{
            "type": "urn:mayfly:rar:target-access",
            "locations": [TOOLS],
            "actions": ["read"],
            "tools": ["search"],
        }])
    );
    assert_eq!(search.details[0].tools, ["search"], "and the answer says the same");
    assert_eq!(token(TOOLS, mcp("dump_everything")).unwrap_err().reason, "policy_denied");
    let public = claims(&token(WIKI, get("/public")).unwrap().token);
    let detail = &public["authorization_details"][0];
    assert_eq!((&detail["methods"], &detail["paths"]), (&json!(["GET"]), &json!(["/public"])));
    assert_eq!(token(WIKI, get("/public/7")).unwrap_err().reason, "policy_denied");
}

#[test]
fn a_form_that_cannot_say_an_operation_is_not_given_for_one() {
    let (agent, mut holder, task) = world();
    for format in [proto::Format::JwtSvid, proto::Format::X509Svid, proto::Format::WitSvid] {
        for (audience, kind) in [(TOOLS, mcp("search")), (WIKI, get("/public"))] {
            let refused = issue(&mut holder, &task, format, audience, kind).unwrap_err();
            assert_eq!((refused.code, refused.reason.as_str()), (9, "operation_not_held"), "{format:?}");
            assert!(refused.message.contains("ask for one"), "{}", refused.message);
        }
    }
    agent.audited(&["decision.deny", "operation_not_held", &task]);
}

#[test]
fn a_statement_that_nobody_approved_buys_nothing() {
    let (_agent, mut holder, task) = world();
    let sales =
        || Kind::Sql(proto::SqlCall { db: "sales".to_owned(), role: "r".to_owned(), ..Default::default() });
    let refused = issue(&mut holder, &task, proto::Format::AccessToken, DB, sales()).unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (9, "operation_not_held"));
    assert!(refused.message.contains("name an approval"), "{}", refused.message);
    // What policy says of it can be asked all the same: nothing is given for that.
    let authorize = proto::AuthorizeRequest {
        task_id: task,
        action: "read".to_owned(),
        target: "db".to_owned(),
        operation: Some(proto::Operation { kind: Some(sales()) }),
        ..Default::default()
    };
    assert!(holder.task_call::<proto::Decision>("Authorize", &authorize).unwrap().allow);
}
