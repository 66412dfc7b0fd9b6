//! What is made of the API server's pages and of the lines of its watch.

use proptest::prelude::*;

use super::decode::Lines;
use super::*;

#[test]
fn a_page_says_where_the_next_begins() {
    let page = |text: &str| decode::page::<Pod>(text.as_bytes());
    let read = page(r#"{"metadata":{"resourceVersion":"7","continue":"x"},"items":null}"#).unwrap();
    assert_eq!((read.items.len(), read.version.as_str(), read.next.as_deref()), (0, "7", Some("x")));
    assert_eq!(page(r#"{"metadata":{"resourceVersion":"7","continue":""}}"#).unwrap().next, None);
    for bad in [
        "",
        "[]",
        "{}",
        r#"{"metadata":{}}"#,
        r#"{"metadata":{"resourceVersion":""}}"#,
        r#"{"metadata":{"resourceVersion":"7"},"items":[{"metadata":{"name":"p","namespace":"n"}}]}"#,
    ] {
        assert!(page(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_line_of_a_watch_is_what_its_kind_says() {
    let event = |text: &str| decode::event::<Pod>(text.as_bytes());
    let object = r#"{"metadata":{"name":"p","namespace":"n","uid":"u","resourceVersion":"9"}}"#;
    assert!(
        matches!(event(&format!(r#"{{"type":"ADDED","object":{object}}}"#)), Ok(Event::Is(_, v)) if v == "9")
    );
    assert!(matches!(event(&format!(r#"{{"object":{object},"type":"DELETED"}}"#)), Ok(Event::Gone(..))));
    let bookmark = r#"{"type":"BOOKMARK","object":{"kind":"Pod","metadata":{"resourceVersion":"12"}}}"#;
    assert_eq!(event(bookmark).unwrap(), Event::Bookmark("12".to_owned()));
    for gone in [r#"{"code":410}"#, r#"{"reason":"Expired"}"#, r#"{"code":410,"reason":"Gone"}"#] {
        assert_eq!(event(&format!(r#"{{"type":"ERROR","object":{gone}}}"#)).unwrap(), Event::Expired);
    }
    let error = event(r#"{"type":"ERROR","object":{"code":500,"message":"no"}}"#).unwrap();
    assert_eq!(error, Event::Error(500, "no".to_owned()));
    for bad in [
        "{}",
        r#"{"type":"CHANGED","object":{}}"#,
        r#"{"type":"ADDED"}"#,
        r#"{"type":"ADDED","object":{}}"#,
        r#"{"type":"BOOKMARK","object":{}}"#,
    ] {
        assert!(event(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_line_without_an_end_is_cut_off() {
    let mut lines = Lines::default();
    let ignore = |_: &[u8]| Ok::<(), decode::DecodeError>(());
    lines.push(&vec![b' '; decode::MAX_LINE], ignore).unwrap();
    assert!(!lines.is_whole());
    assert!(matches!(lines.push(b" ", ignore), Err(decode::DecodeError::TooLong)));
    let mut long = vec![b' '; decode::MAX_LINE + 1];
    long.push(b'\n');
    assert!(matches!(Lines::default().push(&long, ignore), Err(decode::DecodeError::TooLong)));
}

#[test]
fn nothing_else_of_a_pod_is_kept() {
    let metadata =
        json!({"name": "p", "namespace": "n", "uid": uid(1), "annotations": {"note": "do-not-keep"}});
    let env = json!([{"name": "PASSWORD", "value": "do-not-keep"}]);
    let spec = json!({"containers": [{"name": "c", "env": env}]});
    let line = json!({"type": "ADDED", "object": {"metadata": metadata, "spec": spec}}).to_string();
    let event = decode::event::<Pod>(line.as_bytes()).unwrap();
    assert!(!format!("{event:?}").contains("do-not-keep"), "{event:?}");
}

proptest! {
    #[test]
    fn no_bytes_make_decoding_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        decode::event::<Pod>(&bytes).ok();
        decode::page::<Pod>(&bytes).ok();
        decode::event::<Namespace>(&bytes).ok();
    }

    #[test]
    fn lines_are_the_same_however_the_bytes_arrive(
        text in prop::collection::vec(prop_oneof![4 => Just(b'a'), 1 => Just(b'\n'), 1 => Just(b'\r')], 0..60),
        cuts in prop::collection::vec(1..8_usize, 0..60),
    ) {
        let (mut lines, mut got, mut rest) = (Lines::default(), Vec::new(), text.as_slice());
        for cut in cuts.into_iter().chain([usize::MAX]) {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            rest = later;
            lines.push(now, |line| { got.push(line.to_vec()); Ok::<(), decode::DecodeError>(()) }).unwrap();
        }
        let whole = text.rsplit_once_newline();
        let want: Vec<Vec<u8>> = whole.split(|&b| b == b'\n').filter(|l| !l.trim_ascii().is_empty()).map(<[u8]>::to_vec).collect();
        prop_assert_eq!(got, want);
    }
}

trait UpToTheLastNewline {
    fn rsplit_once_newline(&self) -> &[u8];
}

impl UpToTheLastNewline for Vec<u8> {
    fn rsplit_once_newline(&self) -> &[u8] {
        self.iter().rposition(|&b| b == b'\n').map_or(&[], |end| &self[..end])
    }
}
