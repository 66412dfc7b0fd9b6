//! `ValidateJWTSVID`: the JWT-SVID rules, this trust domain's keys, and the denylist in memory.

use std::time::SystemTime;

use mayfly_proto::workload as proto;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use tonic::Status;

use super::status::BadRequest;
use crate::issue::jwt;
use crate::workload::Workloads;

pub(super) fn token(
    workloads: &Workloads,
    token: &str,
    audience: &str,
    now: SystemTime,
) -> Result<proto::ValidateJwtsvidResponse, Status> {
    let trust = workloads.trust().borrow().clone();
    let denied = |lease| workloads.is_revoked(lease);
    match jwt::validate(token, audience, trust.jwt_bundles(), &denied, now) {
        Ok(valid) => Ok(proto::ValidateJwtsvidResponse {
            spiffe_id: valid.spiffe_id.to_string(),
            claims: Some(Struct {
                fields: valid
                    .into_claims(trust.trust_domain())
                    .into_iter()
                    .map(|(name, value)| (name, to_proto(value)))
                    .collect(),
            }),
        }),
        Err(refusal) => {
            tracing::debug!(%refusal, "a token was refused");
            Err(BadRequest::Token.into())
        }
    }
}

fn to_proto(value: serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match value {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(value),
        Json::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or(f64::MAX)),
        Json::String(value) => Kind::StringValue(value),
        Json::Array(values) => {
            Kind::ListValue(ListValue { values: values.into_iter().map(to_proto).collect() })
        }
        Json::Object(fields) => Kind::StructValue(Struct {
            fields: fields.into_iter().map(|(name, value)| (name, to_proto(value))).collect(),
        }),
    };
    Value { kind: Some(kind) }
}
