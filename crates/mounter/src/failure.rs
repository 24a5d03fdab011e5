//! Why something fails, in the protocol's terms.

use std::fmt;
use std::io;

use rustix::io::Errno;
use seamount_mounter::protocol::Fault;

/// A fault with its message: what failed, why, and what to do.
#[derive(Debug)]
pub struct Failure {
    pub fault: Fault,
    pub text: String,
}

pub type Outcome<T> = Result<T, Failure>;

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

pub fn fail<T>(fault: Fault, text: impl Into<String>) -> Outcome<T> {
    Err(Failure { fault, text: text.into() })
}

/// Turns the kernel's refusal into a [`Failure`] that says what was being done.
pub trait Doing<T> {
    fn doing(self, what: impl fmt::Display) -> Outcome<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl fmt::Display) -> Outcome<T> {
        self.map_err(|e| {
            let e = e.into();
            let (fault, remedy) = match Errno::from_io_error(&e) {
                Some(Errno::MFILE | Errno::NFILE) => {
                    (Fault::Exhausted, ": raise the mounter's limit of open files (RLIMIT_NOFILE)")
                }
                Some(Errno::NOSPC | Errno::DQUOT) => (Fault::Storage, ": free space on the kubelet's disk"),
                Some(Errno::ROFS) => (Fault::Storage, ": mount the kubelet's directory read-write"),
                Some(Errno::NOENT) => (Fault::NotFound, ""),
                Some(Errno::XDEV | Errno::LOOP | Errno::NOTDIR | Errno::NAMETOOLONG) => (
                    Fault::NotOurs,
                    ": the kubelet makes no symlink, mount or file there, so nothing is touched",
                ),
                _ => (Fault::System, ""),
            };
            Failure { fault, text: format!("cannot {what}: {e}{remedy}") }
        })
    }
}
