//! The program `seamount-agent`: its command line, and what is set before anything else runs.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use seamount_telemetry::health::Probe;

use crate::config::{Args, ArgsError, HEALTH_SOCKET};
use crate::own_uid;

const HEALTH: Probe = Probe { program: "seamount-agent", socket: HEALTH_SOCKET };

/// Runs with these arguments (without the program's name), before any thread is made.
pub fn main(words: impl Iterator<Item = OsString>) -> ExitCode {
    let mut words = words.peekable();
    if words.next_if(|word| word == "health").is_some() {
        return health(words);
    }
    let args = match Args::parse(words) {
        Ok(args) => args,
        Err(ArgsError::Asked(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(e) => {
            eprintln!("seamount-agent: {e}");
            return ExitCode::from(2);
        }
    };
    // No thread has been made yet.
    if let Some(Err(e)) = args.uid.map(own_uid::take_over) {
        eprintln!("seamount-agent: {e}");
        return ExitCode::FAILURE;
    }
    // Keys and tokens of every pod of the node are in this memory: a core file would put them on a disk, and
    // another process with this uid could read them. After the change of uid, which sets it anew.
    if let Err(e) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        eprintln!(
            "seamount-agent: core dumps could not be switched off: {e}; allow prctl(2) in the seccomp profile"
        );
        return ExitCode::FAILURE;
    }
    match crate::run::run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("seamount-agent: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// On standard output, because that is what the kubelet shows of a probe.
fn health(words: impl Iterator<Item = OsString>) -> ExitCode {
    match HEALTH.ask(words) {
        Ok((good, text)) => {
            let _ = std::io::stdout().write_all(text.as_bytes());
            if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(e) => {
            let _ = writeln!(std::io::stdout(), "{e}");
            ExitCode::FAILURE
        }
    }
}
