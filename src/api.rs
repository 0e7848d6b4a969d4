//! Types and services of package `hearth.v1`, generated from `proto/hearth/v1` (documented there).
//! Used by `rpc` (server) and `hearthctl` (client) only.

#[allow(missing_docs, clippy::all, clippy::pedantic)]
mod generated {
    tonic::include_proto!("hearth.v1");
}
pub use generated::*;

/// The encoded `FileDescriptorSet`, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("hearth.v1");
