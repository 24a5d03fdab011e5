//! What a play prints: the lines of the containers with their names, and its own.

use std::io::{BufRead, BufReader, Read, Write};

/// The longest piece of a line that is printed at once, in bytes; a program that never ends its line costs no
/// more.
const LONGEST: u64 = 64 * 1024;

/// Standard output or standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// How to print.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// Whether it is a terminal.
    pub colour: bool,
}

impl Output {
    /// One line of a play's own, on standard error.
    pub fn say(self, text: &str) {
        for line in text.lines() {
            self.write(Stream::Err, format!("seamount: {line}\n").as_bytes());
        }
    }

    /// One line about a container.
    pub fn about(self, label: &str, text: &str) {
        let line = format!("{} {text}\n", self.prefix(label));
        self.write(Stream::Err, line.as_bytes());
    }

    /// Prints everything that comes from `from`, line by line.
    pub fn copy(self, label: &str, stream: Stream, from: impl Read) {
        let prefix = self.prefix(label);
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        loop {
            line.clear();
            match from.by_ref().take(LONGEST).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let mut out = format!("{prefix} ").into_bytes();
            out.extend_from_slice(&line);
            if !line.ends_with(b"\n") {
                out.push(b'\n');
            }
            self.write(stream, &out);
        }
    }

    fn prefix(self, label: &str) -> String {
        if !self.colour {
            return format!("[{label}]");
        }
        format!("\u{1b}[{}m[{label}]\u{1b}[0m", colour(label))
    }

    fn write(self, stream: Stream, bytes: &[u8]) {
        // One write per line, under the lock. If the reader is gone, the containers still run to their end.
        let _ = match stream {
            Stream::Out => std::io::stdout().lock().write_all(bytes).and_then(|()| std::io::stdout().flush()),
            Stream::Err => std::io::stderr().lock().write_all(bytes),
        };
    }
}

/// The same colour for the same name in every run (FNV-1a).
fn colour(label: &str) -> u32 {
    let hash = label.bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    31 + hash % 6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_colour() {
        assert_eq!(colour("web/server"), colour("web/server"));
        for label in ["", "a/b", "web/server"] {
            assert!((31..37).contains(&colour(label)));
        }
        assert_eq!(Output { colour: false }.prefix("a/b"), "[a/b]");
        assert!(Output { colour: true }.prefix("a/b").contains("[a/b]"));
    }
}
