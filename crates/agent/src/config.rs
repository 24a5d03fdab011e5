//! The agent's configuration: flags over environment over YAML file over defaults.
//!
//! What the file may say is [`seamount_api::agent`]'s; here are the flags and the reading of the file.
//! [`load`] may be called again when the file changes.

mod args;

pub use args::{Args, ArgsError, USAGE, VERSION};
pub use seamount_api::agent::*;
pub use seamount_api::{DurationError, Log, LogFormat, LogLevel, format_duration, parse_duration};

use std::path::{Path, PathBuf};

/// Where the agent answers probes, in a directory of its own that no pod sees.
pub const HEALTH_SOCKET: &str = "/run/seamount-agent/health.sock";
/// The largest configuration file that is read, in bytes.
pub const MAX_FILE: u64 = 256 * 1024;

// Keys that the agent is still ready with are never too old.
const _: () = assert!(MIN_KEYS_MAX_AGE.as_secs() == seamount_pod_token::KEYS_STALE.as_secs());

/// Why there is no configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration {path}: {reason}; check --config and the file's mode")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The file is no YAML mapping.
    #[error("configuration {path}: {source}")]
    Yaml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: seamount_api::agent::ConfigError,
    },
    /// All that is wrong in it.
    #[error(transparent)]
    Invalid(seamount_api::agent::ConfigError),
}

/// Reads file and flags. `node_name` is the environment's NODE_NAME.
///
/// # Errors
/// Where the file cannot be read, and with all that is wrong.
pub fn load(args: &Args, node_name: Option<&str>) -> Result<Config, ConfigError> {
    let Some(path) = &args.config else {
        return parse("", Path::new("(none)"), args, node_name);
    };
    let read = |reason: String| ConfigError::Read { path: path.clone(), reason };
    let size = std::fs::metadata(path).map_err(|e| read(e.to_string()))?;
    if !size.is_file() {
        return Err(read("not a regular file".to_owned()));
    }
    if size.len() > MAX_FILE {
        return Err(read(format!("{} bytes, more than {MAX_FILE}", size.len())));
    }
    let text = std::fs::read_to_string(path).map_err(|e| read(e.to_string()))?;
    parse(&text, path, args, node_name)
}

/// As [`load`], with the file's text; `path` only names it in errors.
///
/// # Errors
/// With all that is wrong.
pub fn parse(text: &str, path: &Path, args: &Args, node_name: Option<&str>) -> Result<Config, ConfigError> {
    use seamount_api::agent::ConfigError as Wrong;
    Config::parse(text, &args.overrides(), node_name).map_err(|source| match source {
        Wrong::Yaml(_) => ConfigError::Yaml { path: path.to_owned(), source },
        Wrong::Invalid(_) => ConfigError::Invalid(source),
    })
}

#[cfg(test)]
mod tests;
