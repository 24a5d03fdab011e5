//! The process's descriptors.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What the agent needs beside volumes: logs, the mounter, the two servers, the runtime, the kubelet's calls
/// under way, and 64 connections for health and metrics. Where there is little, the second.
const RESERVED: (u64, u64) = (128, 64);
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

/// What pods may take of the process's descriptors.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Budget {
    /// Together.
    pub all: u64,
    /// Connections of all pods: what is configured, else three quarters.
    pub connections: u64,
    /// Volumes, two descriptors each: three quarters, so that a connection is left for some of them.
    pub volumes: u64,
}

/// Divides the descriptors. What is kept back is the kubelet's: no number of pods, volumes or clients keeps a
/// publish, an unpublish or a probe from a descriptor.
pub(super) fn budget(configured: Option<u32>, limit: u64) -> Budget {
    let all = room(limit).max(1);
    let most = (all / 4 * 3).max(1);
    let wanted = configured.map_or(most, u64::from);
    if wanted > all {
        tracing::warn!(
            connections = wanted,
            descriptors = limit,
            "workloadApi.connectionsPerNode is more than the descriptor limit carries; lowered to {all}: raise LimitNOFILE"
        );
    }
    Budget { all, connections: wanted.min(all), volumes: most }
}

fn room(limit: u64) -> u64 {
    let (reserved, least) = RESERVED;
    limit.saturating_sub(reserved.min(limit / 8).max(least))
}

fn carries(limit: u64) -> u64 {
    room(limit) / PER_VOLUME
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_leave_descriptors_for_the_kubelet() {
        let numbers = |configured, limit| {
            let Budget { all, connections, volumes } = budget(configured, limit);
            (all, connections, volumes)
        };
        assert_eq!(numbers(None, 1024), (896, 672, 672));
        assert_eq!(numbers(None, 20_000), (19_872, 14_904, 14_904));
        assert_eq!((numbers(Some(100), 1024).1, numbers(Some(5000), 1024).1), (100, 896));
        assert_eq!(numbers(None, 72), (8, 6, 6));
        assert_eq!((numbers(None, 0), numbers(None, u64::MAX).1 > 1 << 60), ((1, 1, 1), true));
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let limit = raise_descriptors();
        assert_eq!(getrlimit(Resource::Nofile).current, getrlimit(Resource::Nofile).maximum);
        assert!(carries(limit) > 0);
        assert_eq!((carries(0), carries(64), carries(1024)), (0, 0, 224));
    }
}
