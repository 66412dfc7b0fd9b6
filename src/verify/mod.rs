//! For programs that link this crate: authenticate TLS peers by X.509-SVID, and let go of them when their
//! certificate is revoked.

pub mod leaf;
#[cfg(test)]
pub(crate) mod testing;
