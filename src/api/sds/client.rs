//! What a client says of itself in the first request of a stream. It decides in which form it is told what to
//! trust, never what it is given.

use mayfly_proto::xds::envoy::config::core::v3::Node;
use mayfly_proto::xds::envoy::config::core::v3::node::UserAgentVersionType;
use prost_types::value::Kind;

/// In which form a client is told what to trust.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Validator {
    /// Envoy's own: any peer that one of the authorities vouches for.
    Plain,
    /// `envoy.tls.cert_validator.spiffe`: each trust domain is judged by its own authorities.
    Spiffe,
}

/// The form for this client: SPIRE's rules. The SPIFFE validator is there since Envoy 1.18.
pub(super) fn validator_for(node: Option<&Node>, spiffe_allowed: bool) -> Validator {
    let spiffe = spiffe_allowed && node.is_some_and(|node| knows_spiffe(node) && !declines_spiffe(node));
    if spiffe { Validator::Spiffe } else { Validator::Plain }
}

fn knows_spiffe(node: &Node) -> bool {
    let Some(UserAgentVersionType::UserAgentBuildVersion(build)) = &node.user_agent_version_type else {
        return false;
    };
    build.version.as_ref().is_some_and(|v| (v.major_number, v.minor_number) > (1, 17))
}

fn declines_spiffe(node: &Node) -> bool {
    let field = node.metadata.as_ref().and_then(|metadata| metadata.fields.get(DECLINE_SPIFFE));
    match field.and_then(|value| value.kind.as_ref()) {
        Some(Kind::BoolValue(yes)) => *yes,
        Some(Kind::StringValue(text)) => text == "true",
        _ => false,
    }
}

/// SPIRE's name for it.
const DECLINE_SPIFFE: &str = "disable_spiffe_cert_validation";

#[cfg(test)]
mod tests {
    use mayfly_proto::xds::envoy::config::core::v3::BuildVersion;
    use mayfly_proto::xds::envoy::r#type::v3::SemanticVersion;
    use prost_types::{Struct, Value};

    use super::*;

    fn node(major_number: u32, minor_number: u32, metadata: Option<Kind>) -> Node {
        let version = Some(SemanticVersion { major_number, minor_number, patch: 0 });
        let kind = UserAgentVersionType::UserAgentBuildVersion(BuildVersion { version });
        let fields = metadata.map(|kind| (DECLINE_SPIFFE.to_owned(), Value { kind: Some(kind) }));
        Node {
            user_agent_version_type: Some(kind),
            metadata: Some(Struct { fields: fields.into_iter().collect() }),
            ..Node::default()
        }
    }

    #[test]
    fn versions_decide_as_in_spire() {
        for (major, minor, expected) in [
            (1, 40, Validator::Spiffe),
            (1, 18, Validator::Spiffe),
            (2, 0, Validator::Spiffe),
            (1, 17, Validator::Plain),
            (0, 99, Validator::Plain),
        ] {
            assert_eq!(validator_for(Some(&node(major, minor, None)), true), expected, "{major}.{minor}");
            assert_eq!(validator_for(Some(&node(major, minor, None)), false), Validator::Plain);
        }
        assert_eq!(validator_for(None, true), Validator::Plain);
        assert_eq!(validator_for(Some(&Node::default()), true), Validator::Plain);
    }

    #[test]
    fn metadata_may_decline() {
        for (value, expected) in [
            (Kind::BoolValue(true), Validator::Plain),
            (Kind::StringValue("true".to_owned()), Validator::Plain),
            (Kind::BoolValue(false), Validator::Spiffe),
            (Kind::StringValue("yes".to_owned()), Validator::Spiffe),
            (Kind::NumberValue(1.0), Validator::Spiffe),
        ] {
            assert_eq!(validator_for(Some(&node(1, 40, Some(value.clone()))), true), expected, "{value:?}");
        }
    }
}
