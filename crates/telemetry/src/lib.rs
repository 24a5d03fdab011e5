//! What a program of Seamount says of itself.

pub mod metrics;
pub mod readiness;
