//! Checks of X.509-SVIDs that a verifier makes, without anything of the agent behind them: bytes, authorities,
//! names and the time come in as arguments.

mod chain;
mod leaf;

pub use self::chain::{ChainError, Purpose, verify_chain};
pub use self::leaf::{LeafFault, leaf_id};
