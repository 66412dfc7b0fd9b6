//! The shell around the lease core: drives it for each live process.
