//! The agent's configuration in two stages: the file field for field, then values that can only be valid.
