//! `src/gen` must be exactly what the `.proto` files generate.

#[cfg(test)]
mod tests {
    use std::path::Path;

    const FILES: [&str; 9] = [
        "workloadapi.proto",
        "mayfly/admin/v1/admin.proto",
        "mayfly/attestor/v1/attestor.proto",
        "mayfly/identity/v1/identity.proto",
        "mayfly/task/v1/task.proto",
        "google/rpc/error_details.proto",
        "envoy/service/secret/v3/sds.proto",
        "envoy/extensions/transport_sockets/tls/v3/secret.proto",
        "envoy/extensions/transport_sockets/tls/v3/tls_spiffe_validator_config.proto",
    ];

    #[test]
    fn generated_code_is_current() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let fresh = tempfile::tempdir().unwrap();
        let descriptors = protox::compile(FILES, [root]).unwrap();
        std::fs::write(fresh.path().join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))
            .unwrap();
        tonic_prost_build::configure()
            .bytes(".")
            .codec_path("crate::codec::SnugCodec")
            .out_dir(fresh.path())
            .compile_fds(descriptors)
            .unwrap();
        let committed = root.join("src/gen");
        for entry in std::fs::read_dir(fresh.path()).unwrap() {
            let entry = entry.unwrap();
            let new = std::fs::read(entry.path()).unwrap();
            let old = committed.join(entry.file_name());
            if std::env::var_os("MAYFLY_BLESS").is_some() {
                std::fs::write(&old, &new).unwrap();
            }
            assert!(
                std::fs::read(&old).ok() == Some(new),
                "{} is stale: run MAYFLY_BLESS=1 cargo test -p mayfly-proto",
                old.display()
            );
        }
    }
}
