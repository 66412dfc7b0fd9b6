//! Between the messages and the conversation.

use std::time::SystemTime;

use mayfly_proto::xds::envoy::config::core::v3::Node;
use mayfly_proto::xds::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use mayfly_proto::xds::google::rpc;

use super::conversation::delta::{self, Delta};
use super::conversation::world::{self, World};
use super::conversation::{Heard, Kind, Piece, TooManyNames};
use super::secrets::{SECRET_TYPE, Secrets};
use crate::authority::CryptoError;

/// One stream in one of the two protocols.
pub(super) trait Dialogue: Default + Send + 'static {
    type Ask: Send + 'static;
    type Reply: Send + 'static;

    fn has_begun(&self) -> bool;
    fn node(ask: &Self::Ask) -> Option<&Node>;
    fn type_url(ask: &Self::Ask) -> &str;
    fn hear(&mut self, ask: Self::Ask) -> Result<Heard, TooManyNames>;
    /// The response that is due, and how many certificates it withdraws.
    fn answer(
        &mut self,
        secrets: &Secrets,
        nonce: String,
        now: SystemTime,
    ) -> Result<Option<(Self::Reply, usize)>, CryptoError>;
}

impl Dialogue for World {
    type Ask = DiscoveryRequest;
    type Reply = DiscoveryResponse;

    fn has_begun(&self) -> bool {
        Self::has_begun(self)
    }

    fn node(ask: &DiscoveryRequest) -> Option<&Node> {
        ask.node.as_ref()
    }

    fn type_url(ask: &DiscoveryRequest) -> &str {
        &ask.type_url
    }

    fn hear(&mut self, ask: DiscoveryRequest) -> Result<Heard, TooManyNames> {
        self.hear(world::Ask {
            version: ask.version_info,
            names: ask.resource_names,
            nonce: ask.response_nonce,
            error: ask.error_detail.as_ref().map(words),
        })
    }

    fn answer(
        &mut self,
        secrets: &Secrets,
        nonce: String,
        now: SystemTime,
    ) -> Result<Option<(DiscoveryResponse, usize)>, CryptoError> {
        let Some(answer) = self.answer(secrets, nonce) else { return Ok(None) };
        let withdrawn = withdrawn(&answer.pieces);
        let reply = DiscoveryResponse {
            version_info: answer.version,
            resources: secrets.encode(&answer.pieces, now)?,
            type_url: SECRET_TYPE.to_owned(),
            nonce: answer.nonce,
        };
        Ok(Some((reply, withdrawn)))
    }
}

impl Dialogue for Delta {
    type Ask = DeltaDiscoveryRequest;
    type Reply = DeltaDiscoveryResponse;

    fn has_begun(&self) -> bool {
        Self::has_begun(self)
    }

    fn node(ask: &DeltaDiscoveryRequest) -> Option<&Node> {
        ask.node.as_ref()
    }

    fn type_url(ask: &DeltaDiscoveryRequest) -> &str {
        &ask.type_url
    }

    fn hear(&mut self, ask: DeltaDiscoveryRequest) -> Result<Heard, TooManyNames> {
        self.hear(delta::Ask {
            subscribe: ask.resource_names_subscribe,
            unsubscribe: ask.resource_names_unsubscribe,
            initial: ask.initial_resource_versions.into_iter().collect(),
            nonce: ask.response_nonce,
            error: ask.error_detail.as_ref().map(words),
        })
    }

    fn answer(
        &mut self,
        secrets: &Secrets,
        nonce: String,
        now: SystemTime,
    ) -> Result<Option<(DeltaDiscoveryResponse, usize)>, CryptoError> {
        let Some(answer) = self.answer(secrets, nonce) else { return Ok(None) };
        let withdrawn = withdrawn(&answer.pieces);
        let encoded = secrets.encode(&answer.pieces, now)?;
        let resources = answer.pieces.into_iter().zip(encoded).map(|(piece, any)| Resource {
            name: piece.name,
            version: piece.version,
            resource: Some(any),
        });
        let reply = DeltaDiscoveryResponse {
            resources: resources.collect(),
            type_url: SECRET_TYPE.to_owned(),
            nonce: answer.nonce,
            ..DeltaDiscoveryResponse::default()
        };
        Ok(Some((reply, withdrawn)))
    }
}

fn withdrawn(pieces: &[Piece]) -> usize {
    pieces.iter().filter(|piece| piece.closed && piece.kind == Kind::Certificate).count()
}

fn words(error: &rpc::Status) -> String {
    format!("{} (code {})", error.message, error.code)
}
