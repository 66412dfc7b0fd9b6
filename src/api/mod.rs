//! Everything that speaks gRPC: listener, connection guard, admission, status codes, one file a service.
