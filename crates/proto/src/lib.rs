//! Generated gRPC messages, clients and servers of the interfaces that Seamount serves or calls.
//!
//! The definitions under `proto/` are our own words with the names and numbers of the contracts; they hold
//! only what is used. `bytes` fields are [`bytes::Bytes`], so that large values are shared, not copied.
//! `Debug` of messages that carry keys or tokens shows neither.

pub mod codec;
mod redacted;

/// Container Storage Interface v1 (`csi.v1`): Identity and Node as of specification 1.13 with the volume
/// condition of 1.12, and the three Controller calls that the test shim plays.
#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    rustdoc::all,
    reason = "generated code"
)]
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// The kubelet's plugin registration v1 (`pluginregistration`).
#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    rustdoc::all,
    reason = "generated code"
)]
pub mod registration {
    tonic::include_proto!("pluginregistration");
}

/// The SPIFFE Workload API (no package).
#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    rustdoc::all,
    reason = "generated code"
)]
pub mod workload {
    tonic::include_proto!("_");
}

/// What an agent says about its node to its operator (`seamount.node.v1`). It has no place for secrets.
#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    rustdoc::all,
    reason = "generated code"
)]
pub mod node {
    tonic::include_proto!("seamount.node.v1");
}

/// The Workload API's encoded `google.protobuf.FileDescriptorSet`, for gRPC server reflection.
pub const WORKLOAD_API_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/workload.bin"));

/// CSI's encoded `google.protobuf.FileDescriptorSet`.
pub const CSI_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/csi.bin"));
