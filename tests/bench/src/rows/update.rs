//! N6: many open streams, and a new bundle for all of them.
//!
//! The bundle changes because the authority prepares its next root, which it does at half of the present
//! one's life. SVIDs of 20 s rotate meanwhile on all volumes.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::node::{Config, Node};
use crate::report::Row;
use crate::streams::Told;
use crate::usage;

use super::{Context, on_one_thread};

const VOLUMES: usize = 1000;
const PER_VOLUME: usize = 10;
const RUNS: usize = 3;

pub fn measure(context: &Context) -> anyhow::Result<Vec<Row>> {
    let mut rows = vec![
        Row::at_most(
            "N6",
            "agent's memory (VmRSS) with 10,000 streams on 1,000 volumes",
            "MB",
            220.0,
            Some(100.0),
        ),
        Row::at_most(
            "N6b",
            "new bundle → the last of 10,000 streams has it (clients included)",
            "ms",
            1000.0,
            Some(200.0),
        ),
        Row::beside("N6c", "from the first stream that has it to the last", "ms"),
        Row::beside("N6d", "per stream: agent's memory above that of 1,000 volumes alone", "KB"),
        Row::beside("N6e", "agent's memory after the update", "MB"),
        Row::beside("N6f", "streams opened one after the other, each with its first message", "/s"),
    ];
    for _ in 0..RUNS {
        let values = run(context)?;
        rows.iter_mut().zip(values).for_each(|(row, value)| row.run(value));
    }
    Ok(rows)
}

struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(context: &Context) -> anyhow::Result<[f64; 6]> {
    let config = Config { lifetimes: Some(("20s", "120s")), ..Config::default() };
    let (node, sockets) = on_one_thread(async {
        let node = Node::started(&context.programs, config).await?;
        let volumes = node.volumes("pod", VOLUMES)?;
        node.hold(&volumes).await?;
        Ok((node, volumes.into_iter().map(|v| v.socket).collect::<Vec<_>>()))
    })?;
    let agent = node.agent()?;
    let alone = usage::resident(agent)?;
    let list = tempfile::NamedTempFile::new()?;
    let text: Vec<_> = sockets.iter().map(|socket| socket.display().to_string()).collect();
    std::fs::write(list.path(), text.join("\n"))?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg("streams")
        .arg("--sockets")
        .arg(list.path())
        .arg("--per-socket")
        .arg(PER_VOLUME.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the process of the streams")?;
    let output = child.stdout.take().context("no standard output")?;
    let _child = Reaped(child);
    let mut lines = BufReader::new(output).lines();
    let mut told = || -> anyhow::Result<Told> {
        let line = lines.next().context("the process of the streams has ended")??;
        serde_json::from_str(&line).with_context(|| format!("from the streams: {line}"))
    };
    let Told::Open { streams, seconds } = told()? else { anyhow::bail!("streams out of order") };
    ensure!(streams == VOLUMES * PER_VOLUME, "{streams} streams are open");
    std::thread::sleep(Duration::from_secs(1));
    let open = usage::resident(agent)?;
    let Told::Updated { first_ns, last_ns } = told()? else { anyhow::bail!("streams out of order") };
    std::thread::sleep(Duration::from_secs(1));
    let after = usage::resident(agent)?;
    // The agent logs the rotation when it has published the new bundle, so the first stream may have it by
    // then.
    let begun = prepared(&node.agent_log())?.min(first_ns);
    let ms = |ns: i128| ns as f64 / 1e6;
    let per_stream = (open - alone) * 1e3 / streams as f64;
    Ok([open, ms(last_ns - begun), ms(last_ns - first_ns), per_stream, after, streams as f64 / seconds])
}

/// When the agent had its new root, in nanoseconds since 1970.
fn prepared(log: &str) -> anyhow::Result<i128> {
    let line =
        log.lines().find(|line| line.contains("the authority rotated")).context("no rotation in the log")?;
    let stamp = line.split_whitespace().next().unwrap_or_default();
    let stamp = OffsetDateTime::parse(stamp, &Rfc3339).with_context(|| format!("no time in {line:?}"))?;
    Ok(stamp.unix_timestamp_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_rotation_is_read_from_the_log() {
        let log = "2026-11-21T13:00:00.000001Z  INFO x\n1970-01-01T00:00:01.000002Z  INFO the authority rotated done=…";
        assert_eq!(prepared(log).unwrap(), 1_000_002_000);
        assert!(prepared("").is_err());
    }
}
