//! A real uid of the agent's own, drawn at each start before anything else is done.
//!
//! The kernel counts by the real uid, over all containers of the node: epoll watches, descriptors in flight,
//! pipe pages. A pod with the same one can use up what the agent needs. No `runAsUser` reaches a drawn one,
//! and an image that names any uid in its `/etc/passwd` would have to guess it. Everything else, files and
//! connections, has the effective uid.

use std::io;
use std::ops::Range;

/// No `runAsUser` is among these: it is an `int32`. Subordinate ids, as distributions hand them out, begin
/// far below; the last ids have meanings of their own.
pub const DRAWN: Range<u32> = 0xc000_0000..0xffff_0000;

/// Why the agent has no uid of its own.
#[derive(Debug, thiserror::Error)]
pub enum OwnUidError {
    /// Not a uid to run as.
    #[error(
        "--uid {0} is no uid for the agent; give that of the mounter's --agent-uid, neither 0 nor a special one"
    )]
    Special(u32),
    /// No random number.
    #[error("--uid: no random number from the kernel; allow getrandom(2) in the seccomp profile")]
    Random,
    /// The kernel or the container's settings are against it.
    #[error(
        "--uid {effective}: {source}; the container needs runAsUser 0 and of all capabilities SETUID alone"
    )]
    NotTaken {
        /// The flag's value.
        effective: u32,
        /// Why.
        source: io::Error,
    },
}

/// Draws the real uid and becomes it, with `effective` for everything else. In the main thread, before there
/// is another.
///
/// # Errors
/// Where this process may not, or a privilege would be left.
pub fn take_over(effective: u32) -> Result<(), OwnUidError> {
    if [0, 65534, u32::MAX - 1, u32::MAX].contains(&effective) || DRAWN.contains(&effective) {
        return Err(OwnUidError::Special(effective));
    }
    let mut random = [0; 4];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| OwnUidError::Random)?;
    seamount_sys::uid::take_over(of(u32::from_ne_bytes(random)), effective)
        .map_err(|source| OwnUidError::NotTaken { effective, source })
}

/// The uid for this random number.
fn of(random: u32) -> u32 {
    DRAWN.start + random % (DRAWN.end - DRAWN.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_is_above_every_run_as_user_and_below_the_special_ids() {
        for random in [0, 1, 0x3ffe_ffff, 0x3fff_0000, u32::MAX] {
            let uid = of(random);
            assert!(i32::try_from(uid).is_err() && uid < u32::MAX - 1, "{uid}");
        }
    }

    #[test]
    fn root_and_ids_with_a_meaning_are_refused() {
        for bad in [0, 65534, DRAWN.start, u32::MAX - 1, u32::MAX] {
            assert!(matches!(take_over(bad), Err(OwnUidError::Special(_))), "{bad}");
        }
    }
}
