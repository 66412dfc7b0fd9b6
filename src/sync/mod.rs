//! `mayfly sync`: puts this process's credentials into files for programs that know nothing of SPIFFE, and tells
//! those programs when something changed. Guide: `docs/sync.md`.
//!
//! [`config`] reads what is wanted, [`plan`] decides what the files hold (pure), [`rounds`] decides when they are
//! written and the program is told (pure), [`place`] writes, [`notify`] and [`child`] tell, [`run`] ties them
//! together. What comes from the agent is checked by [`crate::verify`].

mod child;
mod config;
mod follow;
mod notify;
mod place;
mod plan;
mod rounds;
mod run;

pub use self::child::exec_child;
pub use self::config::{Config, check, load};
pub use self::run::{Ended, Mode, Sync, SyncError};
