//! The program's own pages.

use std::ffi::c_void;
use std::fs;
use std::io;

/// Unmaps the pages of this program's code that are in memory; what runs on comes back by itself, 64 KB at
/// each fault, from the page cache. For a long-lived process when its start is over: bytes that were given
/// up.
///
/// Code alone: it is mapped from the file and never written to. The data that is relocated at the start is
/// read-only too, but would come back without its relocations.
///
/// # Errors
/// Where `/proc/self/maps` cannot be read or the kernel refuses.
pub fn forget_code() -> io::Result<usize> {
    let program = fs::read_link("/proc/self/exe")?;
    let maps = fs::read_to_string("/proc/self/maps")?;
    let mut all = 0;
    for (from, to) in maps.lines().filter_map(|line| code(line, program.to_str()?)) {
        let length = to - from;
        // SAFETY: the range is a mapping of this program's file that can be executed and not written to, so
        // that every page of it has the file's content and is read from there again when it is next run.
        if unsafe { libc::madvise(from as *mut c_void, length, libc::MADV_DONTNEED) } != 0 {
            return Err(io::Error::last_os_error());
        }
        all += length;
    }
    Ok(all)
}

/// How many bytes a page of this machine has.
pub fn page_size() -> u64 {
    // SAFETY: it asks for a number.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}

/// The range of a line of `/proc/<pid>/maps` (proc_pid_maps(5)), if it is code of this program.
fn code(line: &str, program: &str) -> Option<(usize, usize)> {
    let mut words = line.splitn(6, ' ');
    let range = words.next()?;
    if words.next()? != "r-xp" || words.nth(3)?.trim_start() != program {
        return None;
    }
    let (from, to) = range.split_once('-')?;
    let (from, to) = (usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?);
    (from < to).then_some((from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_programs_own_code_is_meant() {
        let line = "7f10a000-7f10c000 r-xp 00002000 fe:00 12                         /opt/a b/agent";
        assert_eq!(code(line, "/opt/a b/agent"), Some((0x7f10_a000, 0x7f10_c000)));
        assert_eq!(code(line, "/opt/agent"), None);
        for other in ["r--p", "rw-p", "rwxp", "r-xs"] {
            assert_eq!(code(&line.replace("r-xp", other), "/opt/a b/agent"), None);
        }
        for bad in [
            "",
            "r-xp",
            "x-y r-xp 0 fe:00 12 /opt/a b/agent",
            "7f10a000-7f10a000 r-xp 0 fe:00 12 /opt/a b/agent",
        ] {
            assert_eq!(code(bad, "/opt/a b/agent"), None, "{bad}");
        }
    }

    /// What is resident of this program's first range of code, in kB (proc_pid_smaps(5)).
    fn resident() -> u64 {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let program = fs::read_link("/proc/self/exe").unwrap();
        let mut lines = smaps.lines().skip_while(|line| code(line, program.to_str().unwrap()).is_none());
        let line = lines.find(|line| line.starts_with("Rss:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn the_program_goes_on() {
        let program = fs::read_link("/proc/self/exe").unwrap();
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let (from, to) = maps.lines().find_map(|line| code(line, program.to_str().unwrap())).unwrap();
        // All of it into memory, then away with it: what is resident after that ran again meanwhile, here or
        // in a test on another thread. One time in fifty (Linux 6.18) that is all of it again.
        let gave_some_up = |_| {
            // SAFETY: the pages are read, nothing is changed.
            let outcome = unsafe { libc::madvise(from as *mut c_void, to - from, libc::MADV_POPULATE_READ) };
            assert_eq!(outcome, 0, "{}", io::Error::last_os_error());
            let before = resident();
            assert!(forget_code().unwrap() > 0);
            resident() < before
        };
        assert!((0..100).any(gave_some_up));
    }
}
