//! The lease core: decides when to issue, renew and revoke. No clock, no I/O, no tasks.
