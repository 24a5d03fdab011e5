//! The command line.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use lexopt::prelude::*;

use crate::error::{Context, Result, bail};

const USAGE: &str = include_str!("usage.txt");

/// What the mounter is told.
#[derive(Debug, Default)]
pub struct Config {
    pub kubelet_root: PathBuf,
    pub driver: String,
    pub socket: PathBuf,
    pub agent_uid: u32,
    pub agent_gid: u32,
    /// The socket's name, then the symlinks to it.
    pub socket_names: Vec<String>,
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
        // Each ends up as one path component; a CSI driver name is at most 63 of these (CSI 1.13,
        // GetPluginInfo).
        let component = |name: &str| {
            let good = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
            good && (1..=63).contains(&name.len()) && !name.starts_with('.')
        };
        let mut names = std::iter::once(&config.driver).chain(&config.socket_names);
        let twice = |name: &&String| config.socket_names.iter().filter(|other| other == name).count() > 1;
        if let Some(bad) = names.find(|name| !component(name) || twice(name)) {
            bail!(Malformed, "--driver or --socket-name {bad:?} is not a name, or given twice");
        }
        Ok(config)
    }

    /// The socket's name in a volume.
    pub fn socket_name(&self) -> &str {
        self.socket_names.first().map_or("", String::as_str)
    }

    fn read(mut args: lexopt::Parser) -> Result<Self, lexopt::Error> {
        let mut config = Self {
            kubelet_root: "/var/lib/kubelet".into(),
            driver: "csi.spiffe.io".into(),
            socket: "/run/seamount/mounter.sock".into(),
            agent_uid: 64203,
            agent_gid: 64203,
            ..Self::default()
        };
        while let Some(arg) = args.next()? {
            match arg {
                Long("kubelet-root") => config.kubelet_root = args.value()?.into(),
                Long("driver") => config.driver = args.value()?.string()?,
                Long("socket") => config.socket = args.value()?.into(),
                Long("agent-uid") => config.agent_uid = args.value()?.parse()?,
                Long("agent-gid") => config.agent_gid = args.value()?.parse()?,
                Long("socket-name") => config.socket_names.push(args.value()?.string()?),
                Long("source-directory") => config.source_directory = Some(args.value()?.into()),
                Long("rootless") => config.rootless = true,
                Long("no-idmap") => config.no_idmap = true,
                other => return Err(other.unexpected()),
            }
        }
        if config.socket_names.is_empty() {
            config.socket_names = ["spire-agent.sock", "agent.sock", "socket"].map(String::from).to_vec();
        }
        Ok(config)
    }
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
        assert_eq!(config.driver, "csi.spiffe.io");
        assert_eq!(config.agent_uid, 64203);
        assert_eq!(config.socket_names, ["spire-agent.sock", "agent.sock", "socket"]);
    }

    #[test]
    fn refuses_what_could_leave_a_directory() {
        for bad in ["", ".", "..", "a/b", ".hidden", &"x".repeat(64)] {
            assert!(parse(&["--driver", bad]).unwrap_err().text.contains("--driver"), "{bad:?}");
            assert!(parse(&["--socket-name", bad]).unwrap_err().text.contains("--socket-name"), "{bad:?}");
        }
        assert!(parse(&["--socket-name", "a", "--socket-name", "a"]).is_err());
        assert!(parse(&["--agent-uid", "-1"]).is_err());
        assert!(parse(&["--nonsense"]).unwrap_err().text.contains("--nonsense"));
    }
}
