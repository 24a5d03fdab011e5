//! Standard error, for a process that must not wait for whoever reads its log.
//!
//! A container's standard error is a pipe to the runtime. Where the runtime stands still (a full disk, a log
//! that is being rotated on a slow one), the pipe is full after 64 KB, and the next write waits: with it
//! every call of the kubelet. So a line that would wait is lost, and counted.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::metrics::{Area, Counter, Names};

/// What a pipe that has room takes at once (pipe(7), PIPE_BUF).
const PIECE: usize = 4096;

/// Only counted up and taken away; nothing depends on its order with anything else.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Writes to standard error what can be written without waiting.
#[derive(Debug, Clone, Copy)]
pub struct Lossy;

/// Lines that were lost.
#[derive(Debug, Default)]
pub struct Metrics {
    lost: Counter,
}

impl Area for Metrics {
    fn register(&self, names: &mut Names<'_>) {
        names.add(
            "log_lines_lost",
            "Lines that were not logged, because whoever reads the log stood still",
            &self.lost,
        );
    }

    fn refresh(&self) {
        self.lost.inc_by(LOST.swap(0, Ordering::Relaxed));
    }
}

impl Write for Lossy {
    /// A whole line at a time, as the formatter hands it over.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if !write_to(&mut io::stderr().lock(), line)? {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether there was room for all of it.
fn write_to(out: &mut (impl Write + std::os::fd::AsFd), line: &[u8]) -> io::Result<bool> {
    for piece in line.chunks(PIECE) {
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let has_room = poll(&mut [PollFd::new(&*out, PollFlags::OUT)], Some(&at_once)) == Ok(1);
        if !has_room {
            return Ok(false);
        }
        out.write_all(piece)?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn a_full_pipe_takes_no_line_and_nobody_waits() {
        let (mut reader, mut writer) = io::pipe().unwrap();
        let line = [b'x'; 300];
        let mut written = 0;
        while write_to(&mut writer, &line).unwrap() {
            written += line.len();
            assert!(written < 10_000_000, "nothing is ever full");
        }
        assert!(!write_to(&mut writer, &[b'y'; 3 * PIECE]).unwrap());
        // And it goes on as soon as somebody reads.
        reader.read_exact(&mut vec![0; written]).unwrap();
        assert!(write_to(&mut writer, &[b'z'; 2 * PIECE + 1]).unwrap());
        let mut rest = vec![0; 2 * PIECE + 1];
        reader.read_exact(&mut rest).unwrap();
        assert!(rest.iter().all(|byte| *byte == b'z'), "a line in pieces, or one that was lost");
    }
}
