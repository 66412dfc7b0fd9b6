//! What a client writes, looked at before `h2` sees it: pure code over octets, no I/O and no clock.
//!
//! [`frame::Scanner`] passes a connection's octets on and cures the one thing the stock stack cannot take
//! (an `:authority` that is a socket path, as every gRPC client on the C core and Java sends it);
//! [`budget::Budget`] turns its frame counts into a verdict.

mod authority;
pub mod budget;
pub mod frame;
mod hpack;
mod huffman;
