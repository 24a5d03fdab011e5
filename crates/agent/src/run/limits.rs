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

/// How many connections all volumes may have together: what is configured, else three quarters of the descriptors. The
/// rest is for volumes, two each, and for the kubelet's calls: no number of clients keeps a pod from being published.
pub(super) fn connections(configured: Option<u32>, limit: u64) -> u64 {
    let room = limit.saturating_sub(RESERVED).max(1);
    let derived = (room / 4 * 3).max(1);
    let wanted = configured.map_or(derived, u64::from);
    if wanted > room {
        tracing::warn!(
            connections = wanted,
            descriptors = limit,
            "workloadApi.connectionsPerNode is more than the descriptor limit carries; lowered to {room}: raise LimitNOFILE"
        );
    }
    wanted.min(room)
}

fn carries(limit: u64) -> u64 {
    limit.saturating_sub(RESERVED) / PER_VOLUME
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_connections_leave_descriptors_for_publishes() {
        assert_eq!((connections(None, 1024), connections(None, 20_000)), (720, 14_952));
        assert_eq!((connections(Some(100), 1024), connections(Some(5000), 1024)), (100, 960));
        assert_eq!((connections(None, 0), connections(None, u64::MAX) > 1 << 60), (1, true));
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let limit = raise_descriptors();
        assert_eq!(getrlimit(Resource::Nofile).current, getrlimit(Resource::Nofile).maximum);
        assert!(carries(limit) > 0);
        assert_eq!((carries(0), carries(64), carries(1024)), (0, 0, 240));
    }
}
