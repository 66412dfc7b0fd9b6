//! Taking back: the denylist, the certificate revocation list, and the times each step took.
