//! Entries: which selectors earn which SPIFFE ID, and the pure function that decides.
