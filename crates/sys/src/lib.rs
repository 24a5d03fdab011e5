//! The few kernel calls that need unsafe code.

#[cfg(feature = "mounter")]
pub mod mounter;
pub mod peer;
#[cfg(feature = "play")]
pub mod play;
#[cfg(feature = "agent")]
pub mod program;
pub mod rights;
#[cfg(feature = "agent")]
pub mod uid;
#[cfg(feature = "agent")]
pub mod watch;
