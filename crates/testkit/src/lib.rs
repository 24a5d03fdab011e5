//! What `seamount play` and the tests share: a token issuer in the API server's place, a kubelet in the kubelet's
//! place, the real programs as child processes, a mount namespace to let them loose in, and a node of all of it.

pub mod authority;
pub mod client;
pub mod disk;
pub mod http2;
pub mod issuer;
pub mod kubelet;
pub mod namespace;
pub mod node;
pub mod processes;
pub mod samples;
pub mod usage;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The program `name` of this workspace, built by the same profile as the running test: `target/<profile>/<name>`.
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

/// A random UUID (RFC 9562, version 4), as Kubernetes gives to its objects.
pub fn uuid() -> String {
    let mut bytes = [0; 16];
    // Without random numbers the name is merely not unique.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    format_uuid(bytes)
}

/// The UUID that belongs to a name: the same name has the same one.
pub fn uuid_of(name: &str) -> String {
    let mut bytes = [0; 16];
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, name.as_bytes());
    for (to, from) in bytes.iter_mut().zip(digest.as_ref()) {
        *to = *from;
    }
    format_uuid(bytes)
}

fn format_uuid(bytes: [u8; 16]) -> String {
    let mut number = u128::from_be_bytes(bytes);
    number = (number & !(0xf << 76)) | (0x4 << 76);
    number = (number & !(0x3 << 62)) | (0x2 << 62);
    let hex = format!("{number:032x}");
    let mut out = String::with_capacity(36);
    for (i, c) in hex.chars().enumerate() {
        if matches!(i, 8 | 12 | 16 | 20) {
            out.push('-');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_have_version_4_form() {
        for id in [uuid(), uuid_of("node-1")] {
            assert_eq!(id.len(), 36, "{id}");
            assert_eq!(&id[14..15], "4", "{id}");
            assert!("89ab".contains(&id[19..20]), "{id}");
            assert!(
                id.bytes().enumerate().all(|(i, b)| match i {
                    8 | 13 | 18 | 23 => b == b'-',
                    _ => b.is_ascii_hexdigit() && !b.is_ascii_uppercase(),
                }),
                "{id}"
            );
        }
        assert_eq!(uuid_of("a"), uuid_of("a"));
        assert_ne!(uuid_of("a"), uuid_of("b"));
    }

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
