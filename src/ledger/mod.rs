//! The durable table of unexpired leases; a row is committed before its credential leaves the agent.
