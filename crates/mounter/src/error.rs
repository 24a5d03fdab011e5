//! Why something fails, in the protocol's terms.

use std::fmt::Display;
use std::io;

use rustix::io::Errno;
use seamount_mounter_protocol::Fault;

/// A fault with its message: what failed, why, and what to do.
#[derive(Debug)]
pub struct Error {
    pub fault: Fault,
    pub text: String,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// `bail!(Busy, "text {with} values")`: returns an [`Error`].
macro_rules! bail {
    ($fault:ident, $($text:tt)*) => {
        return Err($crate::error::Error { fault: seamount_mounter_protocol::Fault::$fault, text: format!($($text)*) })
    };
}
pub(crate) use bail;

const STRANGE: &str = "; the kubelet makes no link, mount or file there: nothing is touched";

/// Turns the kernel's refusal into an [`Error`] that says what was being done.
pub trait Context<T> {
    fn context(self, what: impl Display) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl Display) -> Result<T> {
        self.map_err(|e| {
            let e = e.into();
            let (fault, remedy) = match Errno::from_io_error(&e).unwrap_or(Errno::IO) {
                Errno::MFILE | Errno::NFILE => (Fault::Exhausted, "; raise the limit of open files"),
                Errno::NOSPC | Errno::DQUOT => (Fault::Storage, "; free space on the kubelet's disk"),
                Errno::ROFS => (Fault::Storage, "; mount the kubelet's directory read-write"),
                Errno::NOENT => (Fault::NotFound, ""),
                Errno::XDEV | Errno::LOOP | Errno::NOTDIR | Errno::NAMETOOLONG => (Fault::NotOurs, STRANGE),
                _ => (Fault::System, ""),
            };
            Error { fault, text: format!("cannot {what}: {e}{remedy}") }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortages_and_strange_paths_have_faults_of_their_own() {
        let fault = |e: Errno| Err::<(), _>(e).context("try").unwrap_err().fault;
        assert_eq!((fault(Errno::MFILE), fault(Errno::NFILE)), (Fault::Exhausted, Fault::Exhausted));
        for errno in [Errno::NOSPC, Errno::DQUOT, Errno::ROFS] {
            assert_eq!(fault(errno), Fault::Storage);
        }
        for errno in [Errno::LOOP, Errno::XDEV, Errno::NOTDIR] {
            assert_eq!(fault(errno), Fault::NotOurs);
        }
        assert_eq!((fault(Errno::NOENT), fault(Errno::PERM)), (Fault::NotFound, Fault::System));
    }
}
