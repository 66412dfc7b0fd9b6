//! What verifiers need: the bundles of this trust domain and of those it federates with.
