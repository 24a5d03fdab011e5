//! N8: from the start of the processes to registration, and to the service of everything after a crash.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use bytes::Bytes;
use seamount_testkit::disk::FileSystem;

use crate::client::{self, Bare};
use crate::node::{Config, Node, Volume};
use crate::report::Row;

use super::{Context, on_one_thread};

const RUNS: usize = 9;
const VOLUMES: usize = 500;
const LONG: Duration = Duration::from_secs(60);

pub fn measure(context: &Context) -> anyhow::Result<Vec<Row>> {
    measure_on(context, FileSystem::Tmpfs, RUNS)
}

/// On this file system.
pub fn measure_on(context: &Context, on: FileSystem, runs: usize) -> anyhow::Result<Vec<Row>> {
    let config = Config { on, ..Config::default() };
    on_one_thread(async {
        let mut register = Row::at_most(
            "N8",
            "both processes started → registered with a simulated kubelet",
            "ms",
            50.0,
            Some(20.0),
        );
        for _ in 0..runs {
            let mut node = Node::new(&context.programs, config)?;
            let begun = Instant::now();
            node.start_mounter()?;
            node.start_agent()?;
            node.register().await?;
            register.run(begun.elapsed().as_secs_f64() * 1e3);
        }
        let mut agent = Row::at_most(
            "N8b",
            "agent killed and started, 500 volumes → all have served their SVID",
            "ms",
            300.0,
            Some(100.0),
        );
        let mut both = Row::at_most(
            "N8c",
            "both killed and started, 500 volumes → all have served their SVID",
            "ms",
            300.0,
            Some(100.0),
        );
        let mut node = Node::started(&context.programs, config).await?;
        let volumes = node.volumes("held", VOLUMES)?;
        node.hold(&volumes).await?;
        let before = all_serve(&volumes)?;
        for _ in 0..runs {
            for (row, with_mounter) in [(&mut agent, false), (&mut both, true)] {
                node.kill(with_mounter)?;
                let begun = Instant::now();
                if with_mounter {
                    node.start_mounter()?;
                }
                node.start_agent()?;
                let after = all_serve(&volumes)?;
                row.run(begun.elapsed().as_secs_f64() * 1e3);
                ensure!(before == after, "an identity changed over a restart");
                node.settle().await?;
            }
        }
        Ok(vec![register, agent, both])
    })
}

/// Asks all volumes, and waits for every answer; their chains. A socket without a server is tried again, as
/// client libraries do.
fn all_serve(volumes: &[Volume]) -> anyhow::Result<Vec<Bytes>> {
    let mut asked: Vec<(&Path, Bare)> = Vec::new();
    for volume in volumes {
        asked.push((&volume.socket, ask(&volume.socket)?));
    }
    let mut chains = Vec::new();
    for (socket, mut connection) in asked {
        let begun = Instant::now();
        let message = loop {
            match connection.message() {
                Ok(message) => break message,
                // Taken from the queue of a socket that ended meanwhile.
                Err(error) => ensure!(begun.elapsed() < LONG, "{}: {error}", socket.display()),
            }
            connection = ask(socket)?;
        };
        chains.push(client::chain(message)?);
    }
    Ok(chains)
}

fn ask(socket: &Path) -> anyhow::Result<Bare> {
    let begun = Instant::now();
    loop {
        match Bare::ask(socket) {
            Ok(connection) => return Ok(connection),
            Err(error) => ensure!(begun.elapsed() < LONG, "{}: {error}", socket.display()),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
