//! Pins a process and turns it into selectors. Knows nothing of SPIFFE IDs, policy or keys.
