//! Black-box tests of the connection guard.
