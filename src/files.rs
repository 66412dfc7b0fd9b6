//! Files the agent trusts and files others must never see half-written.
