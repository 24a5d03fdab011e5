//! The hostile pod: a process of its own, without privileges, that has the volumes' directories and nothing
//! else.

use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{
    DumpableBehavior, Gid, Signal, Uid, getppid, set_dumpable_behavior, set_parent_process_death_signal,
};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::attacks::Attack;
use crate::script::{Script, Then};

/// Any but root's and the agent's.
const UID: u32 = 10_001;
/// Connections that are made at a time: writing goes on between them.
const AT_ONCE: usize = 256;
/// What a round waits for, at most.
const ROUND: Duration = Duration::from_millis(10);
/// Between two lines of what was done.
const TELL: Duration = Duration::from_millis(100);
/// Writes to one connection before the next one has its turn.
const TURN: usize = 4;

/// What the attacker got, as it tells it: one line each tenth of a second.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Got {
    /// All connections that it wants were tried at least once.
    pub complete: bool,
    /// Connections that are open.
    pub open: u64,
    /// The most that were open at a time.
    pub most: u64,
    /// Connections that were made.
    pub made: u64,
    /// Connections that the agent ended.
    pub ended: u64,
    /// Frames sent.
    pub frames: u64,
}

impl Got {
    fn line(self) -> String {
        let Self { complete, open, most, made, ended, frames } = self;
        format!("{} {open} {most} {made} {ended} {frames}", u8::from(complete))
    }

    /// Out of a line.
    pub fn parse(line: &str) -> Option<Self> {
        let numbers: Vec<u64> = line.split(' ').map(|word| word.parse().ok()).collect::<Option<_>>()?;
        let [complete, open, most, made, ended, frames] = numbers.try_into().ok()?;
        Some(Self { complete: complete == 1, open, most, made, ended, frames })
    }
}

struct Connection {
    socket: OwnedFd,
    /// What is being written, and how much of it was.
    bytes: Rc<[u8]>,
    written: usize,
    /// How many frames these bytes are, and calls on this connection so far.
    frames: u64,
    calls: u32,
    /// Nothing is written before this.
    next: Instant,
}

/// Attacks until it is killed.
pub fn run(attack: &Attack, volumes: &Path) -> anyhow::Result<()> {
    let text =
        std::fs::read_to_string(volumes).with_context(|| format!("cannot read {}", volumes.display()))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let doors: Vec<OwnedFd> = text
        .lines()
        .map(|path| openat(CWD, path, flags, Mode::empty()).with_context(|| path.to_owned()))
        .collect::<anyhow::Result<_>>()?;
    anyhow::ensure!(!doors.is_empty(), "the pod has no volume");
    drop_privileges()?;
    let slots = std::iter::repeat_with(|| None).take(attack.connections).collect();
    Pod { script: (attack.script)(), doors, got: Got::default(), slots }.attack()
}

/// This thread is the only one.
fn drop_privileges() -> anyhow::Result<()> {
    let (uid, gid) = (Uid::from_raw(UID), Gid::from_raw(UID));
    let parent = getppid();
    set_thread_groups(&[]).context("setgroups")?;
    set_thread_res_gid(gid, gid, gid).context("setresgid")?;
    set_thread_res_uid(uid, uid, uid).context("setresuid")?;
    // Another uid makes /proc/self root's, and with it the way to the directories; and it forgets the death
    // signal.
    set_dumpable_behavior(DumpableBehavior::Dumpable).context("prctl(PR_SET_DUMPABLE)")?;
    set_parent_process_death_signal(Some(Signal::KILL)).context("prctl(PR_SET_PDEATHSIG)")?;
    anyhow::ensure!(getppid() == parent, "the process that started this one has ended");
    Ok(())
}

struct Pod {
    script: Script,
    doors: Vec<OwnedFd>,
    got: Got,
    slots: Vec<Option<Connection>>,
}

impl Pod {
    fn attack(mut self) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        let mut told = Instant::now();
        let mut place = 0;
        loop {
            place = self.connect(place);
            self.exchange();
            if told.elapsed() >= TELL {
                writeln!(out, "{}", self.got.line())?;
                told = Instant::now();
            }
        }
    }

    /// Makes some of the connections that are missing, from this place on; the place to go on at.
    fn connect(&mut self, from: usize) -> usize {
        let count = self.slots.len();
        let mut tries = 0;
        for place in from..count {
            if tries == AT_ONCE {
                return place;
            }
            if self.slots.get(place).is_none_or(Option::is_some) {
                continue;
            }
            tries += 1;
            match self.open(place) {
                Ok(connection) => {
                    self.got.made += 1;
                    self.got.open += 1;
                    self.got.most = self.got.most.max(self.got.open);
                    if let Some(slot) = self.slots.get_mut(place) {
                        *slot = Some(connection);
                    }
                }
                // The queue of this listener is full (connect(2)): another time.
                Err(Errno::AGAIN) => {}
                // All descriptors are in use.
                Err(Errno::MFILE | Errno::NFILE) => break,
                // The volume is not served any more.
                Err(_) => self.got.ended += 1,
            }
        }
        self.got.complete = true;
        0
    }

    fn open(&self, place: usize) -> Result<Connection, Errno> {
        let door = self.doors.get(place % self.doors.len()).ok_or(Errno::NOENT)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let path = format!("/proc/self/fd/{}/spire-agent.sock", door.as_raw_fd());
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        let bytes = Rc::clone(&self.script.opening);
        Ok(Connection { socket, bytes, written: 0, frames: 1, calls: 0, next: Instant::now() })
    }

    /// Writes and reads where that is possible, and forgets connections that were ended.
    fn exchange(&mut self) {
        let now = Instant::now();
        let (mut places, mut waiting) = (Vec::new(), Vec::new());
        for (place, slot) in self.slots.iter().enumerate() {
            let Some(connection) = slot else { continue };
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::IN, self.script.reads);
            wanted.set(PollFlags::OUT, connection.written < connection.bytes.len() && connection.next <= now);
            places.push(place);
            waiting.push(PollFd::new(&connection.socket, wanted));
        }
        let missing = places.len() < self.slots.len();
        let patience =
            if missing && !matches!(self.script.then, Then::Hold) { Duration::ZERO } else { ROUND };
        let patience = Timespec { tv_sec: 0, tv_nsec: patience.as_nanos().try_into().unwrap_or_default() };
        if poll(&mut waiting, Some(&patience)).is_err() {
            return;
        }
        let ready: Vec<_> = waiting.iter().map(PollFd::revents).collect();
        for (place, ready) in places.into_iter().zip(ready) {
            let Some(slot) = self.slots.get_mut(place) else { continue };
            let Some(connection) = slot else { continue };
            let gone = PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
            let mut ended = ready.intersects(gone) || (ready.contains(PollFlags::IN) && !drained(connection));
            let left = matches!(self.script.then, Then::Leave);
            let idle = connection.written == connection.bytes.len() && connection.next <= now;
            if !ended && (ready.contains(PollFlags::OUT) || idle) {
                ended = !written(connection, &self.script.then, &mut self.got.frames);
            }
            if ended || (left && connection.written == connection.bytes.len()) {
                *slot = None;
                self.got.open -= 1;
                self.got.ended += u64::from(ended);
            }
        }
    }
}

/// Reads a little; false at the end.
fn drained(connection: &Connection) -> bool {
    let mut buffer = [0; 16 * 1024];
    !matches!(rustix::io::read(&connection.socket, &mut buffer), Ok(0) | Err(Errno::CONNRESET))
}

/// Writes a little; false where the agent has closed.
fn written(connection: &mut Connection, then: &Then, frames: &mut u64) -> bool {
    for _ in 0..TURN {
        if connection.written == connection.bytes.len() {
            let Some((bytes, count)) = then.next(&mut connection.calls) else { return true };
            (connection.bytes, connection.frames, connection.written) = (bytes, count, 0);
        }
        let rest = connection.bytes.get(connection.written..).unwrap_or_default();
        match rustix::io::write(&connection.socket, rest) {
            Ok(count) => connection.written += count,
            Err(Errno::AGAIN) => return true,
            Err(_) => return false,
        }
        if connection.written == connection.bytes.len() {
            *frames += connection.frames;
            if let Then::Repeat { pause, .. } = then
                && !pause.is_zero()
            {
                connection.next = Instant::now() + *pause;
                return true;
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_got_is_read_as_it_was_told() {
        let got = Got { complete: true, open: 1, most: 2, made: 3, ended: 4, frames: 5 };
        assert_eq!(Got::parse(&got.line()), Some(got));
        assert_eq!(Got::parse("1 2 3"), None);
        assert_eq!(Got::parse("the pod has no volume"), None);
    }
}
