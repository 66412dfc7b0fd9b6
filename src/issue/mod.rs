//! Issuance: each credential spends a permit and is released only against a ledger commit.
