//! The command line.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use lexopt::prelude::*;
use seamount_mounter_protocol::names::{DriverName, SocketName};

use crate::error::{Context, Result, bail};

const USAGE: &str = include_str!("usage.txt");

/// What the mounter is told.
#[derive(Debug, Default)]
pub struct Config {
    pub kubelet_root: PathBuf,
    pub drivers: Vec<DriverName>,
    pub socket: PathBuf,
    pub agent_uid: u32,
    pub agent_gid: u32,
    /// The socket's name, then the symlinks to it.
    pub socket_names: Vec<SocketName>,
    pub source_directory: Option<PathBuf>,
    pub rootless: bool,
    pub no_idmap: bool,
}

impl Config {
    /// Reads the arguments (without the program's name).
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self> {
        let config = match Self::read(lexopt::Parser::from_args(args)) {
            Ok(config) => config,
            Err(e) => {
                // The usage as it is, for people; the log line has the reason.
                eprint!("{USAGE}");
                return Err(io::Error::other(e)).context("start");
            }
        };
        if twice(&config.drivers) || twice(&config.socket_names) {
            bail!(Malformed, "--driver or --socket-name is given twice with one name");
        }
        Ok(config)
    }

    /// The socket's name in a volume.
    pub fn socket_name(&self) -> &str {
        self.socket_names.first().map_or("", SocketName::as_str)
    }

    fn read(mut args: lexopt::Parser) -> Result<Self, lexopt::Error> {
        let mut config = Self {
            kubelet_root: "/var/lib/kubelet".into(),
            socket: "/run/seamount/mounter.sock".into(),
            agent_uid: 64203,
            agent_gid: 64203,
            ..Self::default()
        };
        while let Some(arg) = args.next()? {
            match arg {
                Long("kubelet-root") => config.kubelet_root = args.value()?.into(),
                Long("driver") => config.drivers.push(args.value()?.parse()?),
                Long("socket") => config.socket = args.value()?.into(),
                Long("agent-uid") => config.agent_uid = args.value()?.parse()?,
                Long("agent-gid") => config.agent_gid = args.value()?.parse()?,
                Long("socket-name") => config.socket_names.push(args.value()?.parse()?),
                Long("source-directory") => config.source_directory = Some(args.value()?.into()),
                Long("rootless") => config.rootless = true,
                Long("no-idmap") => config.no_idmap = true,
                other => return Err(other.unexpected()),
            }
        }
        if config.drivers.is_empty() {
            config.drivers.push("csi.spiffe.io".parse()?);
        }
        if config.socket_names.is_empty() {
            for name in ["spire-agent.sock", "agent.sock", "socket"] {
                config.socket_names.push(name.parse()?);
            }
        }
        Ok(config)
    }
}

fn twice<T: Ord>(names: &[T]) -> bool {
    names.iter().collect::<BTreeSet<_>>().len() < names.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Config> {
        Config::parse(args.iter().map(OsString::from))
    }

    #[test]
    fn defaults_are_those_of_a_cluster() {
        let config = parse(&[]).unwrap();
        assert_eq!(config.drivers, ["csi.spiffe.io".parse().unwrap()]);
        assert_eq!(config.agent_uid, 64203);
        assert_eq!(config.socket_names.len(), 3);
        assert_eq!(config.socket_name(), "spire-agent.sock");
    }

    #[test]
    fn refuses_what_could_leave_a_directory() {
        for bad in ["", ".", "..", "a/b", ".hidden", &"x".repeat(64)] {
            assert!(parse(&["--driver", bad]).unwrap_err().text.contains("driver name"), "{bad:?}");
            assert!(parse(&["--socket-name", bad]).unwrap_err().text.contains("socket name"), "{bad:?}");
        }
        assert!(parse(&["--socket-name", "a", "--socket-name", "a"]).is_err());
        assert!(parse(&["--driver", "a", "--driver", "b", "--driver", "a"]).is_err());
        assert_eq!(parse(&["--driver", "b", "--driver", "a"]).unwrap().drivers.len(), 2);
        assert!(parse(&["--agent-uid", "-1"]).is_err());
        assert!(parse(&["--nonsense"]).unwrap_err().text.contains("--nonsense"));
    }
}
