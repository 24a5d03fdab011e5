//! The values that several parts of Seamount read and write alike. No I/O.

mod duration;
mod log;

pub use duration::{DurationError, format_duration, parse_duration};
pub use log::{Log, LogFormat, LogLevel};
