//! The rows of the table, in groups that share a node.

mod disk;
mod fetch;
mod first;
mod issue;
mod machine;
mod memory;
mod publish;
mod start;
mod update;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::report::{self, Row};

/// The arguments of `rows`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these rows, for instance `N1,N3`; all without any.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Where `seamount-mounter` and `seamount-agent` are; beside this program without it.
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Where `results.md` and `results.json` are written.
    #[arg(long, default_value = "bench")]
    out: PathBuf,
    /// The commit that was built, for the results.
    #[arg(long, default_value = "unknown")]
    commit: String,
}

/// What a group is given.
pub struct Context {
    /// Where the programs are.
    pub programs: PathBuf,
}

type Measure = fn(&Context) -> anyhow::Result<Vec<Row>>;

/// Before each group, so that none is measured on what another has left behind.
const REST: Duration = Duration::from_secs(15);

/// Groups: the numbers of their rows, and how they are measured. What waits comes before what computes.
const GROUPS: [(&[u32], Measure); 9] = [
    (&[0], |_| machine::measure()),
    (&[1, 2, 3, 11], publish::measure),
    (&[4], first::measure),
    (&[9], fetch::measure),
    (&[8], start::measure),
    (&[5, 10], memory::measure),
    (&[6], update::measure),
    (&[7], issue::measure),
    (&disk::ROWS, disk::measure),
];

/// Runs the subcommand.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let wanted: Vec<u32> = args.rows.iter().map(|row| number(row)).collect::<anyhow::Result<_>>()?;
    ensure!(seamount_testkit::is_root(), "measuring takes root: mounts, and an agent of another uid");
    let programs = args.programs.clone().unwrap_or_else(crate::beside);
    let programs = std::path::absolute(programs)?;
    let context = Context { programs };
    let mut rows = Vec::new();
    for (numbers, measure) in GROUPS {
        if !wanted.is_empty() && !numbers.iter().any(|n| wanted.contains(n)) {
            continue;
        }
        std::thread::sleep(REST);
        let measured = seamount_testkit::namespace::private_mounts(|| measure(&context))
            .with_context(|| format!("measuring N{}", numbers.map_text()))?;
        measured.iter().for_each(report::show);
        rows.extend(measured);
        // What is known so far is kept, whatever happens to the rest.
        report::write(&args.out, &args.commit, &rows)?;
    }
    println!("results: {}", args.out.join("results.md").display());
    Ok(())
}

trait MapText {
    fn map_text(&self) -> String;
}

impl MapText for [u32] {
    fn map_text(&self) -> String {
        self.iter().map(u32::to_string).collect::<Vec<_>>().join(", N")
    }
}

/// The number of a row: N0 to N11.
fn number(row: &str) -> anyhow::Result<u32> {
    let number = row.trim().strip_prefix(['N', 'n']).and_then(|n| n.parse().ok());
    number.filter(|n| *n <= 11).with_context(|| format!("{row:?} is no row: write N0 to N11"))
}

/// Runs a measurement whose client has one thread, as most of what is played here has.
pub fn on_one_thread<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_in_one_group_and_some_are_on_a_disk_too() {
        let groups = GROUPS.iter().filter(|(numbers, _)| *numbers != disk::ROWS);
        let mut all: Vec<u32> = groups.flat_map(|(numbers, _)| numbers.iter().copied()).collect();
        all.sort_unstable();
        assert_eq!(all, (0..=11).collect::<Vec<_>>());
        assert_eq!(number("n10").unwrap(), 10);
        assert!(number("N12").is_err() && number("7").is_err());
    }
}
