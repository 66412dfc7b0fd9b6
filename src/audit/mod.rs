//! The audit log: hash-chained JSON Lines, one event for each decision.
