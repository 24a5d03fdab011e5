//! A mount namespace of one's own.

/// Runs `f` on a fresh thread in a mount namespace of its own, where every mount is private: nothing that it mounts
/// is seen outside, and all of it is gone when the last process in the namespace has ended. Threads and processes
/// that `f` starts inherit the namespace. A panic in `f` goes on in the caller.
///
/// # Panics
/// If the namespace cannot be made (that takes root: ask [`crate::is_root`] first).
#[allow(clippy::panic, reason = "a test must not go on in the host's mount namespace")]
pub fn private_mounts<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    let outcome = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                if let Err(error) = seamount_sys::play::unshare_mounts() {
                    panic!("cannot make a mount namespace: {error}; run the test as root");
                }
                f()
            })
            .join()
    });
    match outcome {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
