//! Denials, as the kernel writes them into its log where no audit daemon runs.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::fs::{CWD, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

/// One denial.
#[derive(Debug, Clone)]
pub struct Denial {
    /// From `avc:` on.
    pub text: String,
}

impl Denial {
    fn field(&self, key: &str) -> &str {
        let value = self.text.split_once(&format!(" {key}=")).map(|(_, rest)| rest).unwrap_or_default();
        value.split(' ').next().unwrap_or_default()
    }

    fn permissions(&self) -> Vec<&str> {
        let inner = self.text.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
        inner.map(|(inside, _)| inside.split_whitespace().collect()).unwrap_or_default()
    }

    /// Whether this is the denial that was expected.
    pub fn is(&self, expected: &Expected) -> bool {
        self.permissions().contains(&expected.permission)
            && self.field("tclass") == expected.class
            && self.field("scontext").ends_with(expected.source)
            && self.field("tcontext").ends_with(expected.target)
    }
}

/// A denial that a rule is about: permission, class, and the ends of the two contexts (type and level).
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// The permission.
    pub permission: &'static str,
    /// The object's class.
    pub class: &'static str,
    /// Whose.
    pub source: &'static str,
    /// On what.
    pub target: &'static str,
}

/// The kernel's log from now on.
#[derive(Debug)]
pub struct Log(OwnedFd);

impl Log {
    /// Opens it at its end.
    pub fn open() -> anyhow::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, "/dev/kmsg", flags, Mode::empty()).context("open /dev/kmsg")?;
        rustix::fs::seek(&fd, SeekFrom::End(0)).context("go to the end of /dev/kmsg")?;
        Ok(Self(fd))
    }

    /// The denials since the last look. The kernel's audit thread writes a little later than it happens:
    /// where some are expected they are waited for, and one that comes later still is found by the next look,
    /// which does not expect it.
    pub fn denials(&self, expected: &[Expected]) -> anyhow::Result<Vec<Denial>> {
        let begun = Instant::now();
        let mut found = Vec::new();
        loop {
            std::thread::sleep(Duration::from_millis(60));
            self.read(&mut found)?;
            let complete = expected.iter().all(|e| found.iter().any(|d: &Denial| d.is(e)));
            if complete || begun.elapsed() > Duration::from_secs(5) {
                return Ok(found);
            }
        }
    }

    fn read(&self, found: &mut Vec<Denial>) -> anyhow::Result<()> {
        let mut record = vec![0; 8192];
        loop {
            match rustix::io::read(&self.0, &mut record) {
                Ok(length) => {
                    let line = String::from_utf8_lossy(record.get(..length).unwrap_or_default()).into_owned();
                    // "priority,number,time,flags;text", then lines with more that begin with a space.
                    let text = line.split_once(';').map(|(_, text)| text).unwrap_or_default();
                    let text = text.lines().next().unwrap_or_default();
                    if let Some(at) = text.find("avc:  denied") {
                        found.push(Denial { text: text.get(at..).unwrap_or_default().to_owned() });
                    }
                }
                Err(Errno::AGAIN) => return Ok(()),
                // Records were overwritten before they were read.
                Err(Errno::PIPE) => anyhow::bail!("the kernel's log ran over"),
                Err(e) => return Err(e).context("read /dev/kmsg"),
            }
        }
    }
}
