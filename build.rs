//! Generates the Rust types of `proto/`: the public API (with tonic services) for the daemon and hearthctl, the
//! guest's messages (plain prost) for every binary that speaks the guest channel.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    prost_build::Config::new()
        .btree_map(["."])
        .bytes(["."])
        .compile_protos(&["proto/hearth/guest/v1/guest.proto"], &["proto"])?;
    #[cfg(feature = "daemon")]
    daemon()?;
    Ok(())
}

#[cfg(feature = "daemon")]
fn daemon() -> Result<(), Box<dyn std::error::Error>> {
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    tonic_prost_build::configure()
        .btree_map(".")
        .bytes(".")
        // Without the generated `connect` constructor: it would clash with our rpc Connect.
        .build_transport(false)
        .file_descriptor_set_path(out.join("hearth.v1.bin"))
        .compile_protos(
            &[
                "proto/hearth/v1/claims.proto",
                "proto/hearth/v1/sandboxes.proto",
                "proto/hearth/v1/pools.proto",
                "proto/hearth/v1/node.proto",
            ],
            &["proto"],
        )?;
    Ok(())
}
