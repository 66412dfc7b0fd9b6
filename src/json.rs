//! JSON in which no member occurs twice, at any depth: two readers of one token must not see two claims.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// An object without duplicate members; `None` for everything else: other JSON, trailing bytes, a byte order
/// mark, invalid UTF-8, lone surrogates, numbers beyond what a float holds, nesting over 128.
pub fn object(bytes: &[u8]) -> Option<Map<String, Value>> {
    parse(bytes).ok()?
}

/// As [`object`], with the reader's words for what is no JSON of this kind; `None` for JSON that is no object.
///
/// # Errors
/// Where the text stops being strict JSON, by line and column.
pub fn parse(bytes: &[u8]) -> Result<Option<Map<String, Value>>, serde_json::Error> {
    serde_json::from_slice(bytes).map(|Strict(value)| match value {
        Value::Object(members) => Some(members),
        _ => None,
    })
}

/// The members of every object in the order of their names. What we publish is written so, whatever order a library's
/// features make maps keep: the same document always has the same bytes.
pub fn sorted(mut value: Value) -> Value {
    value.sort_all_objects();
    value
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("json without duplicate members")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        // Names arrive with their escapes resolved, so `"s\u0075b"` is `sub` here.
        while let Some((name, Strict(value))) = access.next_entry::<String, Strict>()? {
            if members.insert(name, value).is_some() {
                return Err(A::Error::custom("a member occurs twice"));
            }
        }
        Ok(Value::Object(members))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = access.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Value, E> {
        Number::from_f64(number).map(Value::Number).ok_or_else(|| E::custom("a number is not finite"))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_objects_come_through_unchanged() {
        let text = r#"{"a":[1,-2,1.5,true,null,{"b":"\u00e4"}],"c":{}}"#;
        assert_eq!(object(text.as_bytes()).map(Value::Object), serde_json::from_str(text).ok());
    }

    #[test]
    fn what_is_sorted_is_so_at_every_depth() {
        let text = r#"{"b":[{"y":1,"x":2}],"a":{"d":0,"c":0}}"#;
        let value = serde_json::from_str(text).unwrap();
        assert_eq!(sorted(value).to_string(), r#"{"a":{"c":0,"d":0},"b":[{"x":2,"y":1}]}"#);
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(200), "]".repeat(200));
        let cases: [&[u8]; 13] = [
            br#"{"sub":1,"sub":1}"#,
            br#"{"sub":1,"s\u0075b":2}"#,
            br#"{"a":{"b":1,"b":2}}"#,
            br#"{"a":[{"b":1,"b":2}]}"#,
            b"\xef\xbb\xbf{}",
            b"{}{}",
            b"{} x",
            br#"{"a":"\ud800"}"#,
            b"{\"a\":\"\xff\"}",
            br#"{"a":1e400}"#,
            b"[]",
            b"",
            deep.as_bytes(),
        ];
        for bytes in cases {
            assert_eq!(object(bytes), None, "{}", String::from_utf8_lossy(bytes));
        }
    }
}
