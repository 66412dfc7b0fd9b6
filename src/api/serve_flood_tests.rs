//! Clients that ask for more than they may, or never read: each is stopped before it costs others anything.

use super::super::testkit::{Site, eventually, frame, greeting, request};
use super::super::wire::budget::Overrun;
use super::tests::{asks, blocking, patient};
use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn rapid_reset_is_cut_in_every_run() {
    let site = Site::start(patient());
    for run in 0..10 {
        let mut client = site.client();
        let mut flood = greeting();
        for nth in 0..5_000_u32 {
            flood.extend(request(2 * nth + 1, "/hold"));
            flood.extend(frame(3, 0, 2 * nth + 1, &[0, 0, 0, 8]));
        }
        blocking(move || {
            // It may be cut while it writes.
            std::io::Write::write_all(&mut client.0, &flood).ok();
            client.drain()
        })
        .await;
        // h2's own guard may be faster; ours is there when it is not.
        let ends = site.ends(run + 1).await;
        assert!(matches!(ends[run], None | Some(Cut::Overrun(Overrun::Streams))), "{ends:?}");
    }
    assert!(site.peers.lock().unwrap().len() <= 10 * 220, "few of 50,000 reached the service");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_opened_steadily_beyond_the_budget_are_cut_where_h2_sees_nothing_wrong() {
    let site = Site::start(patient());
    let mut client = site.client();
    asks(&mut client, "/ok");
    blocking(move || {
        // One at a time, each answered: no reset is ever pending.
        for nth in 1..1_000_u32 {
            let sent = std::io::Write::write_all(&mut client.0, &request(2 * nth + 1, "/ok"));
            if sent.is_err() || client.expect(1).is_none() {
                return;
            }
        }
    })
    .await;
    assert_eq!(site.ends(1).await, [Some(Cut::Overrun(Overrun::Streams))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ping_flood_is_cut() {
    let site = Site::start(patient());
    let mut client = site.client();
    asks(&mut client, "/ok");
    let flood = frame(6, 0, 0, b"12345678").repeat(20_000);
    blocking(move || {
        client.0.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        std::io::Write::write_all(&mut client.0, &flood).ok();
        client.drain()
    })
    .await;
    assert_eq!(site.ends(1).await, [Some(Cut::Overrun(Overrun::Control))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_thirty_third_stream_is_refused_and_the_others_go_on() {
    let site = Site::start(patient());
    let mut client = site.client();
    client.send(&greeting());
    for nth in 0..33_u32 {
        client.send(&request(2 * nth + 1, "/hold"));
    }
    let (refused, mut client) = blocking(move || (client.expect(3).unwrap(), client)).await;
    assert_eq!((refused.1, refused.2), (65, vec![0, 0, 0, 7]), "REFUSED_STREAM");
    eventually(|| site.peers.lock().unwrap().len() == 32).await;
    client.send(&frame(6, 0, 0, b"12345678"));
    assert!(blocking(move || client.expect(6)).await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_beyond_the_limit_never_reach_a_service() {
    let site = Site::start(patient());
    let mut client = site.client();
    let mut block = b"\x83\x86\x04\x03/ok\x01\x01a".to_vec();
    for _ in 0..300 {
        block.extend(b"\x00\x05x-big\x64");
        block.extend([b'A'; 100]);
    }
    let mut octets = greeting();
    let (first, rest) = block.split_at(16_000);
    octets.extend(frame(1, 1, 1, first));
    octets.extend(frame(9, 0, 1, &rest[..16_000]));
    octets.extend(frame(9, 4, 1, &rest[16_000..]));
    client.send(&octets);
    // 431 (0x48 is a literal status) or the end of the connection; both are h2's.
    let answer = blocking(move || client.expect(1)).await;
    assert!(answer.is_none_or(|(_, _, block)| block[0] == 0x48));
    assert!(site.peers.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_reads_is_dropped_when_its_socket_stays_full() {
    let mut limits = patient();
    limits.guard.write_stall = Duration::from_millis(200);
    let site = Site::start(limits);
    let mut client = site.client();
    // Windows as large as they get, so that only the socket's buffer is in the way.
    let settings = frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
    let window = frame(8, 0, 0, &0x7fff_0000_u32.to_be_bytes());
    client.send(&[&greeting()[..24], &settings, &window, &request(1, "/flood")].concat());
    assert_eq!(site.ends(1).await, [Some(Cut::Stalled)]);
    // It was dropped while the client still had its end open.
    blocking(move || client.drain()).await;
}
