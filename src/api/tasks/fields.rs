//! Which fields a request may have. A field that this agent does not know could be a limit that its caller relies on:
//! to pass over it would grant more than was asked for, so the request is refused. Generated code drops such fields
//! without a word; this reads the bytes by the same definition that it was generated from.

use std::collections::{BTreeMap, HashMap};

use prost::Message as _;
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};

/// The fields of every request of one service.
#[derive(Debug, Default)]
pub(super) struct Fields {
    /// Method to the type of its request.
    methods: HashMap<String, String>,
    /// Type to its fields by number.
    messages: HashMap<String, BTreeMap<u32, Field>>,
}

#[derive(Debug)]
struct Field {
    name: String,
    /// Its type, if that is a message.
    message: Option<String>,
}

impl Fields {
    /// Those of a service, by its full name. Of a definition that cannot be read nothing is known.
    pub(super) fn of(descriptors: &[u8], service: &str) -> Self {
        let mut fields = Self::default();
        let files = FileDescriptorSet::decode(descriptors).unwrap_or_default().file;
        for file in &files {
            let package = file.package();
            let scope = if package.is_empty() { String::new() } else { format!(".{package}") };
            for message in &file.message_type {
                fields.add(&scope, message);
            }
            let services = file.service.iter().filter(|one| format!("{package}.{}", one.name()) == service);
            let methods = services.flat_map(|one| &one.method);
            fields.methods.extend(methods.map(|one| (one.name().to_owned(), one.input_type().to_owned())));
        }
        fields
    }

    fn add(&mut self, scope: &str, message: &DescriptorProto) {
        let name = format!("{scope}.{}", message.name());
        let fields = message.field.iter().filter_map(|field| {
            let number = u32::try_from(field.number()).ok()?;
            let message = (field.r#type() == Type::Message).then(|| field.type_name().to_owned());
            Some((number, Field { name: field.name().to_owned(), message }))
        });
        self.messages.insert(name.clone(), fields.collect());
        for nested in &message.nested_type {
            self.add(&name, nested);
        }
    }

    /// The first field of a request that is not known, as a path. Bytes that are no message at all are left to whoever
    /// decodes them, and refused there.
    pub(super) fn unknown(&self, method: &str, request: &[u8]) -> Option<String> {
        match self.methods.get(method) {
            Some(message) => self.unknown_in(message, request),
            // Of which nothing is known; what is no method at all is answered as such.
            None => Some("?".to_owned()),
        }
    }

    fn unknown_in(&self, message: &str, mut bytes: &[u8]) -> Option<String> {
        let Some(fields) = self.messages.get(message) else { return Some("?".to_owned()) };
        while !bytes.is_empty() {
            let key = varint(&mut bytes)?;
            let number = u32::try_from(key >> 3).ok()?;
            let Some(field) = fields.get(&number) else { return Some(format!("#{number}")) };
            let value = value(&mut bytes, key & 7)?;
            let inner = field.message.as_ref().and_then(|message| self.unknown_in(message, value));
            if let Some(inner) = inner {
                return Some(format!("{}.{inner}", field.name));
            }
        }
        None
    }
}

/// Takes one number.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for at in 0..10 {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(first & 0x7f).checked_shl(7 * at)?;
        if first & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Takes one value: its bytes where it has a length, none otherwise. Groups are nothing that we know.
fn value<'a>(bytes: &mut &'a [u8], wire: u64) -> Option<&'a [u8]> {
    let length = match wire {
        0 => return varint(bytes).map(|_number| &[][..]),
        1 => 8,
        2 => usize::try_from(varint(bytes)?).ok()?,
        5 => 4,
        _ => return None,
    };
    let (value, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(if wire == 2 { value } else { &[] })
}

#[cfg(test)]
mod tests {
    use mayfly_proto::DESCRIPTORS;
    use mayfly_proto::task as proto;
    use proptest::prelude::*;

    use super::*;

    const SERVICE: &str = "mayfly.task.v1.TaskAPI";

    fn fields() -> Fields {
        Fields::of(DESCRIPTORS, SERVICE)
    }

    /// A request with everything in it.
    fn begin() -> proto::BeginRequest {
        proto::BeginRequest {
            purpose: "p".to_owned(),
            params: [("a".to_owned(), "b".to_owned())].into(),
            details: vec![proto::AuthorizationDetail {
                actions: vec!["read".to_owned()],
                ..Default::default()
            }],
            ttl: Some(prost_types::Duration { seconds: 1, nanos: 1 }),
            limits: Some(proto::Limits {
                idle: Some(prost_types::Duration::default()),
                ..Default::default()
            }),
            require_isolated: true,
            ..Default::default()
        }
    }

    fn tagged(number: u32, wire: u32, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        prost::encoding::encode_varint((number << 3 | wire).into(), &mut bytes);
        if wire == 2 {
            prost::encoding::encode_varint(u64::try_from(value.len()).unwrap(), &mut bytes);
        }
        bytes.extend(value);
        bytes
    }

    #[test]
    fn every_method_and_every_message_of_its_request_is_known() {
        let fields = fields();
        assert_eq!(fields.methods.len(), 9);
        let inner =
            fields.messages.values().flat_map(BTreeMap::values).filter_map(|one| one.message.as_ref());
        for message in inner.chain(fields.methods.values()) {
            assert!(fields.messages.contains_key(message), "{message} is not in the descriptors");
        }
    }

    #[test]
    fn what_is_known_passes_however_it_is_written() {
        let fields = fields();
        assert_eq!(fields.unknown("Begin", &begin().encode_to_vec()), None);
        assert_eq!(fields.unknown("Begin", &[]), None);
        // Defaults that are written out, a number longer than it need be, fields in another order and twice.
        let odd = [tagged(11, 0, &[0]), tagged(6, 0, &[0x80, 0]), tagged(1, 2, b""), begin().encode_to_vec()];
        assert_eq!(fields.unknown("Begin", &odd.concat()), None);
        let http = proto::operation::Kind::Http(proto::HttpCall { bytes: 7, ..Default::default() });
        let issue = proto::IssueRequest {
            operation: Some(proto::Operation { kind: Some(http) }),
            ..Default::default()
        };
        assert_eq!(fields.unknown("Issue", &issue.encode_to_vec()), None);
    }

    #[test]
    fn an_unknown_field_is_found_wherever_it_is() {
        let fields = fields();
        let with = |more: Vec<u8>| fields.unknown("Begin", &[begin().encode_to_vec(), more].concat());
        assert_eq!(with(tagged(15, 0, &[1])).as_deref(), Some("#15"));
        assert_eq!(with(tagged(4, 2, &tagged(9, 2, b"x"))).as_deref(), Some("details.#9"));
        assert_eq!(with(tagged(3, 2, &tagged(3, 2, b"x"))).as_deref(), Some("params.#3"));
        assert_eq!(with(tagged(5, 2, &tagged(3, 0, &[1]))).as_deref(), Some("ttl.#3"));
        assert_eq!(with(tagged(8, 2, &tagged(6, 2, &tagged(9, 0, &[1])))).as_deref(), Some("limits.idle.#9"));
        // Also where its value is none that we could read.
        assert_eq!(with(tagged(15, 3, &[])).as_deref(), Some("#15"));
        let sql = tagged(8, 2, &tagged(3, 2, &tagged(4, 2, b"x")));
        assert_eq!(fields.unknown("Issue", &sql).as_deref(), Some("operation.sql.#4"));
        assert!(Fields::of(b"rubbish", SERVICE).unknown("Begin", &[]).is_some(), "nothing is known then");
    }

    proptest! {
        /// Whatever passes is what decoding and encoding again leaves whole: nothing in it was dropped.
        #[test]
        fn nothing_is_dropped_from_what_passes(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let fields = fields();
            if fields.unknown("Get", &bytes).is_none()
                && let Ok(request) = proto::GetTaskRequest::decode(bytes.as_slice())
            {
                let whole = request.encode_to_vec();
                // The last of several is what counts; no other field than the first was there.
                prop_assert!(request.task_id.is_empty() || bytes.ends_with(request.task_id.as_bytes()));
                prop_assert!(whole.len() <= bytes.len());
            }
        }
    }
}
