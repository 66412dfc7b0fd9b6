//! `ValidateJWTSVID`: the JWT-SVID rules, the keys that the caller may rely on, and the denylist in memory.

use std::sync::Arc;
use std::time::SystemTime;

use mayfly_proto::workload as proto;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use tonic::Status;

use super::admission::Call;
use super::status::BadRequest;
use crate::id::TrustDomain;
use crate::issue::jwt::{self, JwtRefusal, ValidatedJwt};
use crate::trust::{JwtBundles, TrustView};
use crate::workload::Workloads;

/// Anybody may ask about a token of our own trust domain; about one of another, who has an entry that federates with
/// that domain (WAPI-45).
pub(super) async fn token(
    call: &Call,
    workloads: &Workloads,
    asked: &proto::ValidateJwtsvidRequest,
    now: SystemTime,
) -> Result<proto::ValidateJwtsvidResponse, Status> {
    let trust = workloads.trust().borrow().clone();
    let check = |bundles: &JwtBundles| {
        let denied = |lease| workloads.refuses(lease, "ValidateJWTSVID") || workloads.is_suspended(lease);
        jwt::validate(&asked.svid, &asked.audience, bundles, &denied, now)
    };
    let mut verdict = check(trust.jwt_bundles());
    if matches!(verdict, Err(JwtRefusal::TrustDomain)) && trust.federated().next().is_some() {
        let federates_with = call.admit().await?.admission().federates_with();
        verdict = check(&TrustView::new(Arc::clone(&trust), federates_with).all_jwt_bundles());
    }
    match verdict {
        Ok(valid) => Ok(answer(valid, trust.trust_domain())),
        Err(refusal) => {
            tracing::debug!(%refusal, "a token was refused");
            Err(BadRequest::Token.into())
        }
    }
}

fn answer(valid: ValidatedJwt, own: &TrustDomain) -> proto::ValidateJwtsvidResponse {
    let spiffe_id = valid.spiffe_id.to_string();
    let fields = valid.into_claims(own).into_iter().map(|(name, value)| (name, to_proto(value))).collect();
    proto::ValidateJwtsvidResponse { spiffe_id, claims: Some(Struct { fields }) }
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
