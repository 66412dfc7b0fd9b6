//! Messages on the wire, with buffers no larger than the messages. The stock codec keeps 8 KiB for each open stream,
//! which at ten thousand streams is most of what the agent would need.

use std::marker::PhantomData;

use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic_prost::{ProstCodec, ProstDecoder};

/// Protobuf by prost; `T` is sent, `U` received.
#[derive(Clone, Debug)]
pub struct SnugCodec<T, U>(PhantomData<(T, U)>);

/// Encodes into exactly the room that a message takes.
#[derive(Clone, Debug)]
pub struct SnugEncoder<T>(PhantomData<T>);

impl<T, U> Default for SnugCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SnugCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = SnugEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        SnugEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(small())
    }
}

impl<T: Message> Encoder for SnugEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(item.encoded_len());
        item.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        small()
    }
}

/// To begin with, for a message and its length; and how much may gather before it is handed on.
fn small() -> BufferSettings {
    BufferSettings::new(64, 32 * 1024)
}
