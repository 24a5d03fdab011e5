//! CSI: what the kubelet asks for.

pub mod metrics;
pub mod request;
pub mod service;
