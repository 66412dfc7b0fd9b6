//! Who counts as the pinned process. What a connection does with the answer is tested in `serve_tests`.

use super::super::serve::ServeLimits;
use super::super::testkit::{Site, host, run_python};
use super::*;

fn writer(pid: u32, pidfs_inode: Option<u64>) -> WriterId {
    WriterId { pid, uid: 1000, pidfs_inode }
}

#[test]
fn the_inode_decides_where_both_have_one_and_the_number_elsewhere() {
    let key = |pidfs_inode| ProcessKey { boot_id: host().boot_id(), pid: 40, start_time: 7, pidfs_inode };
    for (pinned, stamp, same) in [
        (key(Some(9)), Some(writer(40, Some(9))), true),
        // The agent's own pid namespace may not name the writer; its inode still does.
        (key(Some(9)), Some(writer(0, Some(9))), true),
        // The number was reused by another process.
        (key(Some(9)), Some(writer(40, Some(10))), false),
        // Gone before it could be named exactly, or a kernel before 6.9.
        (key(Some(9)), Some(writer(40, None)), true),
        (key(None), Some(writer(40, Some(9))), true),
        (key(Some(9)), Some(writer(41, None)), false),
        (key(None), Some(writer(41, None)), false),
        (key(Some(9)), None, false),
        (key(None), None, false),
    ] {
        assert_eq!(is_pinned_process(&pinned, stamp.as_ref()), same, "{stamp:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn root_that_claims_to_be_another_process_only_loses_its_connection() {
    let site = Site::start(ServeLimits::default());
    let said = run_python(
        &site.door.path,
        0,
        r#"
s = connect(); s.sendall(GREETING + req(1, b"/ok")); until(s, 1)
forged = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("3i", 1, 0, 0))]
s.sendmsg([PING], forged)
try: until(s, 6); say("served")
except (EOFError, ConnectionError): say("cut")
"#,
    )
    .await;
    assert_eq!(said, "cut\n");
    let ends = site.ends(1).await;
    assert!(
        matches!(ends[0], Some(Cut::WriterMismatch { writer: Some(writer) }) if writer.pid == 1),
        "{ends:?}"
    );
}
