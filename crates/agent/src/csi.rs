//! CSI: what the kubelet asks for.

pub mod request;
pub mod service;
