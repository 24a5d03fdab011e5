//! The process's descriptors.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What the agent needs beside volumes: logs, the mounter, doors, HTTP, the runtime.
const RESERVED: u64 = 64;
/// A listener, its copy for the mounter, and two connections (two containers with one stream each).
const PER_VOLUME: u64 = 4;

/// Raises the soft limit to the hard one, says what that carries, and returns it.
pub(super) fn raise_descriptors() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    if let Err(e) = raised {
        tracing::warn!(error = %e, "the descriptor limit could not be raised");
    }
    let limit = getrlimit(Resource::Nofile).current.or(current).unwrap_or(u64::MAX);
    tracing::info!(
        descriptors = limit,
        volumes = carries(limit),
        "descriptor limit; volumes with two connections each"
    );
    limit
}

fn carries(limit: u64) -> u64 {
    limit.saturating_sub(RESERVED) / PER_VOLUME
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let limit = raise_descriptors();
        assert_eq!(getrlimit(Resource::Nofile).current, getrlimit(Resource::Nofile).maximum);
        assert!(carries(limit) > 0);
        assert_eq!((carries(0), carries(64), carries(1024)), (0, 0, 240));
    }
}
