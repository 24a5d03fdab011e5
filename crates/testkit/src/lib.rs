//! What the tests share: a mount namespace to let the real programs loose in, and a node of all of it. The
//! token issuer, the kubelet and the child processes are those of `seamount play`.

pub mod authority;
pub mod client;
pub mod disk;
pub mod http2;
pub mod namespace;
pub mod node;
pub mod processes;
pub mod samples;
pub mod usage;

pub use seamount_play::{issuer, kubelet, uuid, uuid_of};

use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The program `name` of this workspace, built by the same profile as the running test:
/// `target/<profile>/<name>`.
///
/// # Panics
/// If it is not there; the message says what to run.
#[allow(clippy::panic, reason = "a test that cannot find its program has failed")]
pub fn bin(name: &str) -> PathBuf {
    match find_bin(name) {
        Some(path) => path,
        None => panic!("the program {name} is not built: run `cargo build --workspace --bins` first"),
    }
}

/// Like [`bin`], or `None` if the program is not there.
pub fn find_bin(name: &str) -> Option<PathBuf> {
    let test = std::env::current_exe().ok()?;
    let directory = test.parent()?;
    // Tests run from target/<profile>/deps, programs from target/<profile>.
    let directory = if directory.ends_with("deps") { directory.parent()? } else { directory };
    let path = directory.join(name);
    path.is_file().then_some(path)
}

/// Says on standard output that a test cannot run here; the test then returns.
///
/// # Panics
/// If the environment has `SEAMOUNT_NO_SKIP=1`.
#[allow(clippy::panic, reason = "SEAMOUNT_NO_SKIP turns a skipped test into a failed one")]
pub fn skip(test: &str, reason: &str) {
    if std::env::var_os("SEAMOUNT_NO_SKIP").is_some_and(|v| v == "1") {
        panic!("{test} cannot run and SEAMOUNT_NO_SKIP=1 forbids to skip it: {reason}");
    }
    // Not println!: the test harness hides the output of tests that pass. It may be in the middle of a line.
    let _ = writeln!(std::io::stdout(), "\nSKIPPED {test}: {reason}");
}

/// Whether this process is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Waits until `condition` holds, trying it every 20 ms.
///
/// # Panics
/// After `deadline`; the message names `what`.
#[allow(clippy::panic, reason = "a test that waits in vain has failed")]
pub fn eventually(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        if started.elapsed() > deadline {
            panic!("waited {deadline:?} in vain: {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// [`eventually`] for asynchronous conditions.
///
/// # Panics
/// After `deadline`; the message names `what`.
#[allow(clippy::panic, reason = "a test that waits in vain has failed")]
pub async fn eventually_async(deadline: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !condition().await {
        if started.elapsed() > deadline {
            panic!("waited {deadline:?} in vain: {what}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eventually_waits_and_names_what_it_waited_for() {
        let mut left = 3;
        eventually(Duration::from_secs(30), "three tries", || {
            left -= 1;
            left == 0
        });
        let failure =
            std::panic::catch_unwind(|| eventually(Duration::ZERO, "a wonder", || false)).unwrap_err();
        assert!(failure.downcast_ref::<String>().unwrap().contains("a wonder"));
    }

    #[test]
    fn a_missing_program_says_what_to_build() {
        let failure = std::panic::catch_unwind(|| bin("no-such-program")).unwrap_err();
        assert!(failure.downcast_ref::<String>().unwrap().contains("cargo build --workspace --bins"));
    }
}
