//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::Parser;
use lexopt::prelude::*;
use seamount_api::agent::Overrides;

/// What `--help` prints.
pub const USAGE: &str = include_str!("usage.txt");
/// What `--version` prints.
pub const VERSION: &str = concat!("seamount-agent ", env!("CARGO_PKG_VERSION"), "\n");

/// Why there are no flags.
#[derive(Debug, thiserror::Error)]
pub enum ArgsError {
    /// `--help` or `--version` asked for this text.
    #[error("{0}")]
    Asked(&'static str),
    /// They are wrong.
    #[error("{0}; for more information, try '--help'")]
    Wrong(#[from] lexopt::Error),
    /// One of them would not be obeyed.
    #[error("--{0} is given twice; give it once")]
    Twice(&'static str),
}

/// Flags. Each one wins over the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Args {
    /// Configuration file (YAML). Without it: the defaults and the flags.
    pub config: Option<PathBuf>,
    /// Name of this node. Default: the environment's NODE_NAME, then nodeName of the file.
    pub node_name: Option<String>,
    /// The mounter's socket.
    pub mounter_socket: Option<String>,
    /// The kubelet's root directory (its --root-dir).
    pub kubelet_root: Option<String>,
    /// Names of the CSI drivers.
    pub drivers: Vec<String>,
    /// Where metrics are served.
    pub http_address: Option<String>,
    /// The socket that `seamount-agent health` asks; empty: none.
    pub health_socket: Option<String>,
    /// The uid to go on as, for an agent that starts as root; its real uid is drawn.
    pub uid: Option<u32>,
    /// Log as `text` or as `json`.
    pub log_format: Option<String>,
    /// Log `error`, `warn`, `info`, `debug` or `trace`.
    pub log_level: Option<String>,
}

impl Args {
    /// Those that win over the file.
    pub fn overrides(&self) -> Overrides {
        Overrides {
            node_name: self.node_name.clone(),
            mounter_socket: self.mounter_socket.clone(),
            kubelet_root: self.kubelet_root.clone(),
            drivers: self.drivers.clone(),
            http_address: self.http_address.clone(),
            log_format: self.log_format.clone(),
            log_level: self.log_level.clone(),
        }
    }

    /// Reads the arguments (without the program's name).
    pub fn parse(args: impl IntoIterator<Item = impl Into<OsString>>) -> Result<Self, ArgsError> {
        let mut parser = Parser::from_args(args);
        let mut read = Self::default();
        while let Some(arg) = parser.next()? {
            let (name, field) = match arg {
                Short('h') | Long("help") => return Err(ArgsError::Asked(USAGE)),
                Short('V') | Long("version") => return Err(ArgsError::Asked(VERSION)),
                Long("config") => {
                    if read.config.replace(parser.value()?.into()).is_some() {
                        return Err(ArgsError::Twice("config"));
                    }
                    continue;
                }
                Long("uid") => {
                    if read.uid.replace(parser.value()?.parse()?).is_some() {
                        return Err(ArgsError::Twice("uid"));
                    }
                    continue;
                }
                Long("driver") => {
                    read.drivers.push(parser.value()?.string()?);
                    continue;
                }
                Long("node-name") => ("node-name", &mut read.node_name),
                Long("mounter-socket") => ("mounter-socket", &mut read.mounter_socket),
                Long("kubelet-root") => ("kubelet-root", &mut read.kubelet_root),
                Long("http-address") => ("http-address", &mut read.http_address),
                Long("health-socket") => ("health-socket", &mut read.health_socket),
                Long("log-format") => ("log-format", &mut read.log_format),
                Long("log-level") => ("log-level", &mut read.log_level),
                other => return Err(other.unexpected().into()),
            };
            if field.replace(parser.value()?.string()?).is_some() {
                return Err(ArgsError::Twice(name));
            }
        }
        Ok(read)
    }
}
