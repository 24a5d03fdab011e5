//! A mount namespace of one's own.

use std::io;
use std::path::PathBuf;

use rustix::mount::{MountFlags, mount};

/// Directories that every Linux has (Filesystem Hierarchy Standard 3.0) and that no program needs here.
const PLACES: [&str; 3] = ["/mnt", "/media", "/srv"];
/// What is in a directory that [`scratch`] has made one.
const MARK: &str = ".seamount-scratch";

/// A directory on a tmpfs that is gone with the mount namespace, whatever ends the processes in it: nothing
/// is left on the machine's disk. The same one for each call in one namespace. Call it in a namespace of
/// one's own only. Its name is short: a socket's path has at most 107 bytes (unix(7)).
///
/// # Errors
/// If nothing can be mounted (that takes root), or the working directory or this program is below each
/// candidate.
pub fn scratch() -> io::Result<PathBuf> {
    let needed = [std::env::current_dir()?, std::env::current_exe()?];
    let free = |place: &PathBuf| place.is_dir() && !needed.iter().any(|n| n.starts_with(place));
    let place = PLACES.iter().map(PathBuf::from).find(free).ok_or(io::ErrorKind::NotFound)?;
    if !place.join(MARK).exists() {
        mount("tmpfs", &place, "tmpfs", MountFlags::empty(), Some(c"mode=755"))?;
        std::fs::write(place.join(MARK), "")?;
    }
    Ok(place)
}

/// Runs `f` on a fresh thread in a mount namespace of its own, where every mount is private: nothing that it
/// mounts is seen outside, and all of it is gone when the last process in the namespace has ended. Threads
/// and processes that `f` starts inherit the namespace. A panic in `f` goes on in the caller.
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
