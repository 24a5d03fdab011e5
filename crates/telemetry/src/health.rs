//! `<program> health live|ready`: asks the running program over its health socket, and tells what it says.
//!
//! For the kubelet's exec probes, each period anew: nothing is started for it, neither runtime nor logger.
//! The kubelet shows what a failed probe prints in the pod's events.

use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::Parser;
use lexopt::prelude::*;

/// How long it may take; the probes wait for 3 s.
const LIMIT: Duration = Duration::from_secs(2);
/// The largest answer that is read: a program that was taken over must not fill the kubelet's events.
const ANSWER: u64 = 16 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// The command line.
    #[error("{what}; write `{program} health live` or `{program} health ready`")]
    Usage {
        /// The program.
        program: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// Nothing answers.
    #[error("{program} does not answer on {}: {source}; look at its log", socket.display())]
    Silent {
        /// The program.
        program: &'static str,
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// How a program is asked.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// Its name.
    pub program: &'static str,
    /// Its health socket, where the command line names no other.
    pub socket: &'static str,
}

impl Probe {
    /// What the program says, and whether that is good. With the arguments behind `health`.
    ///
    /// # Errors
    /// Where it cannot be asked.
    pub fn ask(
        &self,
        args: impl IntoIterator<Item = impl Into<OsString>>,
    ) -> Result<(bool, String), HealthError> {
        let program = self.program;
        let usage = |what| HealthError::Usage { program, what };
        let (path, socket) = self.read(Parser::from_args(args)).map_err(|e| usage(e.to_string()))?;
        let path = path.ok_or_else(|| usage("what to ask for is missing".to_owned()))?;
        let silent = |source| HealthError::Silent { program, socket: socket.clone(), source };
        let answer = exchange(&socket, path).map_err(silent)?;
        let closed = || io::Error::other("it closed the connection without an answer");
        parse(&answer).ok_or_else(|| silent(closed()))
    }

    fn read(&self, mut args: Parser) -> Result<(Option<&'static str>, PathBuf), lexopt::Error> {
        let (mut path, mut socket) = (None, PathBuf::from(self.socket));
        while let Some(arg) = args.next()? {
            match arg {
                Value(word) if path.is_none() && word == "live" => path = Some("/livez"),
                Value(word) if path.is_none() && word == "ready" => path = Some("/readyz"),
                Long("health-socket") => socket = args.value()?.into(),
                other => return Err(other.unexpected()),
            }
        }
        Ok((path, socket))
    }
}

fn exchange(socket: &PathBuf, path: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Whether the status is 200, and the body.
fn parse(answer: &str) -> Option<(bool, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.split(' ').next()?;
    Some((status == "200", body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROBE: Probe = Probe { program: "the-program", socket: "/nonexistent/default.sock" };

    #[test]
    fn one_of_two_questions_is_asked() {
        for bad in [&[][..], &["livez"], &["live", "ready"], &["live", "--socket", "x"]] {
            let error = PROBE.ask(bad.iter().copied()).unwrap_err();
            assert!(matches!(error, HealthError::Usage { .. }), "{bad:?}: {error}");
            assert!(error.to_string().contains("`the-program health live`"), "{error}");
        }
    }

    #[test]
    fn a_missing_program_is_said_with_the_socket() {
        let error =
            PROBE.ask(["live", "--health-socket", "/nonexistent/health.sock"]).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/health.sock"), "{error}");
        let error = PROBE.ask(["live"]).unwrap_err().to_string();
        assert!(error.starts_with("the-program") && error.contains("/nonexistent/default.sock"), "{error}");
    }

    #[test]
    fn only_200_is_good() {
        assert_eq!(parse("HTTP/1.1 200 OK\r\na: b\r\n\r\nok\n"), Some((true, "ok\n".into())));
        assert_eq!(parse("HTTP/1.1 503 X\r\n\r\n[-] x\n"), Some((false, "[-] x\n".into())));
        for cut in ["", "HTTP/1.1 200 OK\r\n", "SSH-2.0\r\n\r\n"] {
            assert_eq!(parse(cut), None, "{cut:?}");
        }
    }
}
