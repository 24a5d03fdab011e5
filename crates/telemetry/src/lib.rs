//! What a program of Seamount says of itself: metrics, readiness and progress over HTTP, the probe that asks
//! for them, and the log.

pub mod health;
pub mod http;
pub mod logging;
pub mod metrics;
pub mod readiness;
