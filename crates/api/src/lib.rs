//! The values that several parts of Seamount read and write alike. No I/O.

#[cfg(feature = "agent")]
pub mod agent;
mod duration;
mod log;
mod size;
pub mod token;

pub use duration::{DurationError, format_duration, parse_duration};
pub use log::{Log, LogFormat, LogLevel};
pub use size::{Size, SizeError, parse_size};
