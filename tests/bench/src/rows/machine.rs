//! N0: what the machine does to every row, without anything of ours.
//!
//! A virtual machine's processor that has nothing to do is taken away from it, and its memory may be as well.
//! Each call wakes four sleeping processes, and after a rest touches some hundred pages.

use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

use crate::report::{Row, Samples};

const RUNS: usize = 7;
const ROUNDS: usize = 500;
const PAGES: usize = 1000;
const PAGE: usize = 4096;
/// As long as the nodes rest between two crowds of calls, about.
const REST: Duration = Duration::from_millis(300);

pub fn measure() -> anyhow::Result<Vec<Row>> {
    let what = format!("the machine: {PAGES} pages of memory, touched a moment ago");
    let mut rows = vec![
        Row::beside(
            "N0",
            "the machine: a thread that sleeps on another processor is woken by a byte, p50",
            "ms",
        ),
        Row::beside("N0b", &what, "ms"),
        Row::beside("N0c", &format!("the machine: {PAGES} pages of memory, touched 0.3 s ago"), "ms"),
    ];
    let memory = vec![1_u8; PAGES * PAGE];
    for _ in 0..RUNS {
        let woken = wake()?;
        touch(&memory);
        let hot = touch(&memory);
        std::thread::sleep(REST);
        let values = [woken, hot, touch(&memory)];
        rows.iter_mut().zip(values).for_each(|(row, value)| row.run(value));
    }
    Ok(rows)
}

/// Half of the time that a byte takes to a thread on another processor and back; NaN where there is none.
fn wake() -> anyhow::Result<f64> {
    let before = sched_getaffinity(None)?;
    let here = sched_getcpu();
    let Some(there) = (0..CpuSet::MAX_CPU).find(|cpu| *cpu != here && before.is_set(*cpu)) else {
        return Ok(f64::NAN);
    };
    sched_setaffinity(None, &only(here))?;
    let woken = between(there);
    sched_setaffinity(None, &before)?;
    woken
}

fn only(cpu: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(cpu);
    set
}

fn between(processor: usize) -> anyhow::Result<f64> {
    let (mut here, mut there) = UnixStream::pair()?;
    let other = std::thread::spawn(move || -> anyhow::Result<()> {
        sched_setaffinity(None, &only(processor))?;
        let mut byte = [0];
        while there.read(&mut byte)? > 0 {
            there.write_all(&byte)?;
        }
        Ok(())
    });
    let mut samples = Samples::default();
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        here.write_all(&[1])?;
        here.read_exact(&mut [0])?;
        samples.add(begun.elapsed() / 2);
    }
    drop(here);
    other.join().ok().context("the other thread broke off")??;
    Ok(samples.p50())
}

fn touch(memory: &[u8]) -> f64 {
    let begun = Instant::now();
    black_box(memory.iter().step_by(PAGE).map(|byte| u64::from(black_box(*byte))).sum::<u64>());
    begun.elapsed().as_secs_f64() * 1e3
}
