//! Which socket to ask.

use std::env;
use std::fmt;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use spiffe::transport::Endpoint;

use super::failure::Failure;

/// Where Workload API sockets usually are: our own volume, SPIRE's, Istio's.
const USUAL: [&str; 6] = [
    "/spiffe-workload-api/spire-agent.sock",
    "/spiffe-workload-api/agent.sock",
    "/run/spire/agent-sockets/spire-agent.sock",
    "/run/spire/sockets/agent.sock",
    "/run/secrets/workload-spiffe-uds/socket",
    "/tmp/spire-agent/public/api.sock",
];

/// The socket that is asked.
#[derive(Debug)]
pub struct Chosen(Endpoint);

impl Chosen {
    /// Its address.
    pub fn endpoint(&self) -> &Endpoint {
        &self.0
    }

    /// Looks at the socket first: the system's own reasons are clearer than those of a client.
    pub fn probe(&self) -> Result<(), Failure> {
        let Endpoint::Unix(path) = &self.0 else { return Ok(()) };
        let socket = path.display().to_string();
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.file_type().is_socket() => Ok(()),
            Ok(_) => Err(Failure::NotASocket { socket }),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                Err(Failure::Missing { socket })
            }
            Err(source) => Err(Failure::Unreachable { socket, source }),
        }
    }
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Endpoint::Unix(path) => path.display().fmt(f),
            Endpoint::Tcp { host, port } => write!(f, "{host} port {port}"),
            other => write!(f, "{other:?}"),
        }
    }
}

/// The flag, else the environment, else the first of the usual paths that is there.
pub fn choose(flag: Option<&str>) -> Result<Chosen, Failure> {
    let environment = env::var_os("SPIFFE_ENDPOINT_SOCKET").filter(|value| !value.is_empty());
    match (flag, environment) {
        (Some(value), _) => parse("--socket", value),
        (None, Some(value)) => parse("SPIFFE_ENDPOINT_SOCKET", &value.to_string_lossy()),
        (None, None) => usual(USUAL.map(PathBuf::from).into()),
    }
}

fn usual(tried: Vec<PathBuf>) -> Result<Chosen, Failure> {
    match tried.iter().find(|path| path.exists()) {
        Some(path) => Ok(Chosen(Endpoint::Unix(path.clone()))),
        None => Err(Failure::NoSocket { tried }),
    }
}

fn parse(origin: &'static str, value: &str) -> Result<Chosen, Failure> {
    let refuse = |reason: String| Failure::Address { origin, value: value.to_owned(), reason };
    if value.is_empty() {
        return Err(refuse("it is empty".to_owned()));
    }
    if value.contains("://") || value.starts_with("unix:") || value.starts_with("tcp:") {
        return Endpoint::parse(value).map(Chosen).map_err(|error| refuse(error.to_string()));
    }
    let path = std::path::absolute(Path::new(value)).map_err(|error| refuse(error.to_string()))?;
    Ok(Chosen(Endpoint::Unix(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_uris_name_the_same_socket() {
        for value in ["/run/a.sock", "unix:///run/a.sock", "unix:/run/a.sock"] {
            assert_eq!(parse("--socket", value).unwrap().to_string(), "/run/a.sock");
        }
        assert_eq!(parse("--socket", "tcp://127.0.0.1:80").unwrap().to_string(), "127.0.0.1 port 80");
        let here = std::env::current_dir().unwrap().join("a.sock");
        assert_eq!(parse("--socket", "a.sock").unwrap().to_string(), here.display().to_string());
    }

    #[test]
    fn what_is_no_address_is_refused_by_origin() {
        for bad in ["", "http://x", "unix://host/a", "tcp://name:1"] {
            let error = parse("SPIFFE_ENDPOINT_SOCKET", bad).unwrap_err().to_string();
            assert!(error.starts_with("SPIFFE_ENDPOINT_SOCKET"), "{error}");
            assert!(error.contains("give a path or unix:///PATH"), "{error}");
        }
    }

    #[test]
    fn without_any_the_remedy_is_the_volume() {
        let error = usual(vec!["/no/such/a.sock".into(), "/no/such/b.sock".into()]).unwrap_err().to_string();
        assert!(error.contains("/no/such/a.sock, /no/such/b.sock"), "{error}");
        assert!(error.contains("driver: csi.spiffe.io"), "{error}");
    }

    #[test]
    fn the_first_that_is_there_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let there = directory.path().join("b");
        std::fs::write(&there, "").unwrap();
        let chosen = usual(vec![directory.path().join("a"), there.clone()]).unwrap();
        assert_eq!(chosen.to_string(), there.display().to_string());
        assert!(matches!(chosen.probe(), Err(Failure::NotASocket { .. })));
    }
}
