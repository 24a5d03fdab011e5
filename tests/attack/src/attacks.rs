//! What a hostile pod may try: one entry for each row of the table.

use seamount_testkit::http2::kind;

use crate::script::{self, Script};

/// What one connection takes by default: a pod that fills its volumes has so many of each.
const PER_VOLUME: usize = 64;
/// Volumes of a flood: what the most that is known of needed.
const FLOOD: usize = 10;

/// An attack.
#[derive(Debug)]
pub struct Attack {
    /// In the table and on the command line.
    pub name: &'static str,
    /// How many volumes the pod has; it gets fewer where the agent refuses some.
    pub volumes: usize,
    /// How many connections it wants at a time, over all of them.
    pub connections: usize,
    /// What each connection does.
    pub script: fn() -> Script,
    /// Descriptors that each of the two processes may have.
    pub descriptors: u64,
    /// Fields of the embedded authority beside its directory.
    pub authority: &'static str,
}

/// What a node's processes usually may have: enough for all connections of 240 volumes.
const DESCRIPTORS: u64 = 20_000;

const fn attack(name: &'static str, volumes: usize, connections: usize, script: fn() -> Script) -> Attack {
    Attack { name, volumes, connections, script, descriptors: DESCRIPTORS, authority: "" }
}

const fn flood(name: &'static str, script: fn() -> Script) -> Attack {
    attack(name, FLOOD, FLOOD * PER_VOLUME, script)
}

/// All of them.
pub const ATTACKS: &[Attack] = &[
    attack("connections", 240, 240 * PER_VOLUME, script::hold),
    // Few connections: descriptors are used up by volumes alone.
    Attack { descriptors: 1024, ..attack("descriptors", 600, 64, script::hold) },
    Attack { descriptors: 1024, ..attack("descriptors-both", 200, 1024, script::hold) },
    attack("reflection", 5, 5 * PER_VOLUME, script::reflection),
    flood("streams", script::streams),
    flood("health-streams", script::health_streams),
    flood("half-requests", script::half_requests),
    flood("half-frames", script::half_frames),
    flood("header-lists", script::header_lists),
    flood("window-updates", || script::frames(kind::WINDOW_UPDATE, &1_u32.to_be_bytes())),
    flood("pings", || script::frames(kind::PING, &[0; 8])),
    flood("settings", script::settings),
    flood("unknown-frames", || script::frames(0xfa, &[0; 64])),
    flood("empty-data", script::empty_data),
    flood("continuations", script::continuations),
    flood("rapid-reset", script::rapid_reset),
    flood("requests", script::unread_requests),
    flood("methods", script::methods),
    flood("connects", script::connects),
    // The shortest lifetime: each stream is sent a new SVID every five seconds.
    Attack { authority: ", svidTtl: 10s, caTtl: 1m", ..flood("watchers", script::watchers) },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_different_and_every_attack_does_something() {
        let mut names: Vec<_> = ATTACKS.iter().map(|attack| attack.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ATTACKS.len());
        assert!(ATTACKS.iter().all(|attack| !(attack.script)().opening.is_empty()));
    }
}
