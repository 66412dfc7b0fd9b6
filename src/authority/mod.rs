//! Signing keys and their certificates: X.509 and JWT authorities, and where their keys live.
