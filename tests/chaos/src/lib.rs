//! Chaos: the real mounter and the real agent under a simulated kubelet, killed at random while volumes are
//! published and unpublished and their pods hold streams open. What must not happen is counted
//! ([`tally::Fault`]).

pub mod gaps;
pub mod leaks;
pub mod node;
pub mod pods;
pub mod random;
pub mod storm;
pub mod tally;
