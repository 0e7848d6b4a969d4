//! What containerd-client lacks, and how messages travel in an `Any`.

use prost::Message;
use prost_types::Any;

/// `containerd.runc.v1.Options`, the only options a task of the runc shim may have. Field numbers from
/// `api/types/runc/options/oci.proto` of containerd 2.4.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct RuncOptions {
    /// The program called instead of runc.
    #[prost(string, tag = "6")]
    pub(super) binary_name: String,
    /// Its `--root`, less the namespace that the shim appends.
    #[prost(string, tag = "7")]
    pub(super) root: String,
    /// The image to be restored; empty: none.
    #[prost(string, tag = "10")]
    pub(super) criu_image_path: String,
}

/// `containerd.runc.v1.CheckpointOptions`, of the same file. No `exit`: the task stays.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct CheckpointOptions {
    /// Where the image goes; without it containerd would pack it into its content store.
    #[prost(string, tag = "8")]
    pub(super) image_path: String,
}

impl prost::Name for CheckpointOptions {
    const NAME: &'static str = "CheckpointOptions";
    const PACKAGE: &'static str = "containerd.runc.v1";
}

impl prost::Name for RuncOptions {
    const NAME: &'static str = "Options";
    const PACKAGE: &'static str = "containerd.runc.v1";
}

/// A proto message: containerd wants the bare full name as the type.
pub(super) fn any<T: Message + prost::Name>(message: &T) -> Any {
    Any {
        type_url: T::full_name(),
        value: message.encode_to_vec(),
    }
}

/// Reads a message out of an `Any`; `None` when it is of another type or damaged.
pub(super) fn from_any<T: Message + prost::Name + Default>(any: &Any) -> Option<T> {
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    (name == T::full_name()).then(|| T::decode(any.value.as_slice()).ok())?
}

/// An OCI runtime spec: JSON under the URL that containerd's Go code registers for it (`pkg/oci`).
pub(super) fn spec_any(json: Vec<u8>) -> Any {
    Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".to_owned(),
        value: json,
    }
}
