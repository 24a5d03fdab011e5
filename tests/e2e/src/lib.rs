//! What the end-to-end tests share: the cluster as `kubectl` and the nodes' shells show it, a namespace per
//! test, and pods.
//!
//! The tests need the cluster of `tests/e2e/run.sh`, which sets [`cluster::MARK`]; without it they are
//! skipped.

#![allow(clippy::indexing_slicing, reason = "JSON values give null for what is missing")]

pub mod cluster;
pub mod node;
pub mod pod;
pub mod spire;
pub mod survivor;
pub mod system;
pub mod test;

pub use cluster::{apply, kubectl};
pub use pod::Pod;
pub use survivor::Survivor;
pub use test::{Test, until};

/// The CSI driver's name.
pub const DRIVER: &str = "csi.spiffe.io";
/// The namespace of the installation.
pub const SYSTEM: &str = "seamount-system";
/// The trust domain of the installation under test.
pub const TRUST_DOMAIN: &str = "e2e.test";
/// The product's own image: `/seamount`, `/seamount-agent`, `/seamount-mounter` and nothing else.
pub const IMAGE: &str = "seamount:dev";
/// busybox and `/client` (go-spiffe).
pub const CLIENTS: &str = "test.local/seamount-clients:1";
/// Where the pods of the tests mount their identity.
pub const MOUNT: &str = "/spiffe-workload-api";
