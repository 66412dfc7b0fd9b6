//! Listens to an engine for what changes about its containers. Begins when somebody has asked about one: an engine
//! that is there for nothing is left alone.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;

use super::KIND;
use super::answer::{Event, Said};
use super::engine::{Engine, spoken};
use super::http::{AskError, Exchange};
use crate::backend::{News, Tell};

/// Never ends.
pub(super) async fn listen(engine: Arc<Engine>, tell: Tell) {
    let mut pause = FIRST_PAUSE;
    loop {
        engine.asked.notified().await;
        loop {
            let began = tokio::time::Instant::now();
            let ended = hear(&engine, &tell).await;
            engine.stop_to_hear();
            // One that was heard for a while has only been restarted.
            pause =
                if began.elapsed() > LONGEST_PAUSE { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
            match ended {
                Err(AskError::Dial(error)) if error.is_absence() => break,
                Err(error) => tracing::debug!(socket = %engine.socket.display(), %error, "engine not heard"),
                Ok(()) => {}
            }
            // Somebody who asks about a container may find it there again.
            tokio::time::sleep(FIRST_PAUSE).await;
            tokio::time::timeout(pause, engine.asked.notified()).await.ok();
        }
    }
}

/// Until the stream ends.
async fn hear(engine: &Engine, tell: &Tell) -> Result<(), AskError> {
    let Ok(version) = tokio::time::timeout(PATIENCE, spoken(&engine.socket)).await else { return Ok(()) };
    let version = version?;
    let path = format!("/v{version}/events?filters=%7B%22type%22%3A%5B%22container%22%5D%7D");
    let begun = tokio::time::timeout(PATIENCE, Exchange::get(&engine.socket, &path)).await;
    let Ok(begun) = begun else { return Ok(()) };
    let mut stream = begun?;
    if stream.status() != StatusCode::OK {
        return Ok(());
    }
    engine.begin_to_hear(version);
    tracing::info!(socket = %engine.socket.display(), "container events are heard");
    // Who could not be told anything while nothing was heard can be now.
    tell(News::Kind(KIND));
    let mut text = Vec::new();
    while let Some(bytes) = stream.chunk().await? {
        text.extend_from_slice(&bytes);
        let Some(used) = events(&text, |event| note(engine, tell, &event)) else {
            return Err(AskError::TooLong(MOST_EVENT_BYTES));
        };
        text.drain(..used);
    }
    Ok(())
}

fn note(engine: &Engine, tell: &Tell, event: &Event) {
    match event.said() {
        Some(Said::Renamed(id)) => {
            engine.heard(&id);
            tell(News::Container(id));
        }
        Some(Said::Ended(id)) => engine.heard(&id),
        None => {}
    }
}

/// Hands on every whole event at the start of `text`; how many bytes they are, or `None` when it is no stream of events.
fn events(text: &[u8], mut each: impl FnMut(Event)) -> Option<usize> {
    let mut all = serde_json::Deserializer::from_slice(text).into_iter::<Event>();
    loop {
        let used = all.byte_offset();
        match all.next() {
            Some(Ok(event)) => each(event),
            None => return Some(used),
            Some(Err(error)) if error.is_eof() && text.len() - used < MOST_EVENT_BYTES => return Some(used),
            Some(Err(_)) => return None,
        }
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// For an engine that is there and does not speak.
const PATIENCE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// An event repeats all labels of its container.
const MOST_EVENT_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "4f1e0c7b9a2d3e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7";

    fn event(action: &str) -> String {
        format!(
            "{{\"Type\":\"container\",\"Action\":\"{action}\",\"Actor\":{{\"ID\":\"{A}\",\"Attributes\":{{\"n\":\"}}{{\"}}}}}}\n"
        )
    }

    fn count(text: &[u8]) -> (Option<usize>, usize) {
        let mut count = 0;
        let used = events(text, |event| count += usize::from(event.said().is_some()));
        (used, count)
    }

    #[test]
    fn what_is_no_stream_of_events_ends_it() {
        assert_eq!(count(b"<html>"), (None, 0));
        assert_eq!(count(b""), (Some(0), 0));
        let endless = format!("{{\"Action\":\"{}", "x".repeat(MOST_EVENT_BYTES));
        assert_eq!(count(endless.as_bytes()), (None, 0));
    }

    proptest! {
        #[test]
        fn however_the_stream_is_cut_every_event_comes_once(cuts in proptest::collection::vec(1_usize..200, 0..20)) {
            let all = [event("die"), event("exec_start"), event("rename"), event("destroy")].concat();
            let (mut text, mut seen, mut rest) = (Vec::new(), 0, all.as_bytes());
            for cut in cuts.into_iter().chain([all.len()]) {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                text.extend_from_slice(now);
                let used = events(&text, |event| seen += usize::from(event.said().is_some())).unwrap();
                text.drain(..used);
                rest = later;
            }
            prop_assert_eq!(seen, 3);
            prop_assert!(text.trim_ascii().is_empty());
        }
    }
}
