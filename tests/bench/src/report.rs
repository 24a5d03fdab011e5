//! Numbers, the table, and the files `results.md` and `results.json`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
pub use seamount_testkit::samples::Samples;
use serde::{Deserialize, Serialize};

/// Which direction is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Fewer.
    Less,
    /// More.
    More,
}

/// A row while it is measured.
#[derive(Debug, Clone)]
pub struct Row {
    id: String,
    what: String,
    unit: &'static str,
    limits: Option<(f64, Option<f64>)>,
    better: Better,
    runs: Vec<f64>,
}

impl Row {
    /// At most `must`, better `aim`.
    pub fn at_most(id: &str, what: &str, unit: &'static str, must: f64, aim: Option<f64>) -> Self {
        Self { limits: Some((must, aim)), ..Self::beside(id, what, unit) }
    }

    /// At least `must`, better `aim`.
    pub fn at_least(id: &str, what: &str, unit: &'static str, must: f64, aim: f64) -> Self {
        Self { limits: Some((must, Some(aim))), better: Better::More, ..Self::beside(id, what, unit) }
    }

    /// A number that explains others and has no limit.
    pub fn beside(id: &str, what: &str, unit: &'static str) -> Self {
        Self {
            id: id.to_owned(),
            what: what.to_owned(),
            unit,
            limits: None,
            better: Better::Less,
            runs: Vec::new(),
        }
    }

    /// The same row on this disk: without limits, which are for memory, and under a name of its own.
    #[must_use]
    pub fn on(self, disk: &str) -> Self {
        let (id, what) = (format!("{}.{disk}", self.id), format!("{}; on {disk}", self.what));
        Self { id, what, limits: None, ..self }
    }

    /// The number before the disk.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The value of one run.
    pub fn run(&mut self, value: f64) {
        self.runs.push(value);
    }

    fn result(&self) -> Entry {
        let mut sorted = self.runs.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
        // Of an even number of runs the middle of the two in the middle.
        let median = at(sorted.len() / 2).midpoint(at(sorted.len().saturating_sub(1) / 2));
        let ok = self.limits.map(|(must, _)| match self.better {
            Better::Less => median <= must,
            Better::More => median >= must,
        });
        Entry {
            what: self.what.clone(),
            value: rounded(median),
            unit: self.unit.to_owned(),
            must: self.limits.map(|(must, _)| must),
            aim: self.limits.and_then(|(_, aim)| aim),
            ok,
            min: rounded(at(0)),
            median: rounded(median),
            max: rounded(at(sorted.len().saturating_sub(1))),
        }
    }
}

/// Four digits; the rest is noise.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10_f64.powi(3 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}

/// A row of `results.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    what: String,
    value: f64,
    unit: String,
    must: Option<f64>,
    aim: Option<f64>,
    ok: Option<bool>,
    min: f64,
    median: f64,
    max: f64,
}

/// Where it was measured. No names: results are published.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Machine {
    cores: usize,
    processor: String,
    kernel: String,
    memory_mb: u64,
}

impl Machine {
    fn here() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib = total.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        let uname = rustix::system::uname();
        // Version and architecture; what follows the first hyphen may name a builder.
        let release = uname.release().to_string_lossy().into_owned();
        let release = release.split('-').next().unwrap_or_default();
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: model.map_or_else(String::new, |(_, name)| name.to_owned()),
            kernel: format!("{release} {}", uname.machine().to_string_lossy()),
            memory_mb: kib.unwrap_or_default() * 1024 / 1_000_000,
        }
    }
}

/// `results.json`.
#[derive(Debug, Serialize, Deserialize)]
struct File {
    machine: Machine,
    commit: String,
    #[serde(flatten)]
    rows: BTreeMap<String, Entry>,
}

/// Prints one row as soon as it is known.
pub fn show(row: &Row) {
    let entry = row.result();
    println!("{:<5} {}", row.id, line(&entry));
}

/// Writes both files. Rows that were not measured now stay if they are of the same commit and machine.
pub fn write(directory: &Path, commit: &str, rows: &[Row]) -> anyhow::Result<()> {
    let mut file = File { machine: Machine::here(), commit: commit.to_owned(), rows: BTreeMap::new() };
    let json = directory.join("results.json");
    if let Ok(text) = fs::read_to_string(&json)
        && let Ok(before) = serde_json::from_str::<File>(&text)
        && before.commit == file.commit
        && before.machine == file.machine
    {
        file.rows = before.rows;
    }
    file.rows.extend(rows.iter().map(|row| (row.id.clone(), row.result())));
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let text = serde_json::to_string_pretty(&file)? + "\n";
    fs::write(&json, text).with_context(|| format!("cannot write {}", json.display()))?;
    let markdown = directory.join("results.md");
    fs::write(&markdown, to_markdown(&file)).with_context(|| format!("cannot write {}", markdown.display()))
}

fn to_markdown(file: &File) -> String {
    let Machine { cores, processor, kernel, memory_mb } = &file.machine;
    let mut out = format!(
        "# Measurements\n\nBy `make bench` at commit {} on {cores} cores ({processor}), Linux {kernel}, {memory_mb} MB. What the \
         rows are: `README.md`. The value is the median of the runs.\n\n\
         | row | what | value | must | aim | ok | min … max |\n|---|---|---|---|---|---|---|\n",
        file.commit
    );
    let mut rows: Vec<_> = file.rows.iter().collect();
    rows.sort_by_key(|(id, _)| order(id));
    for (id, row) in rows {
        let limit = |limit: Option<f64>| limit.map_or_else(String::new, |n| n.to_string());
        let ok = row.ok.map_or("", |ok| if ok { "yes" } else { "**no**" });
        let Entry { what, value, unit, min, max, .. } = row;
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "| {id} | {what} | {value} {unit} | {} | {} | {ok} | {min} … {max} |",
            limit(row.must),
            limit(row.aim)
        );
    }
    out
}

/// N2 before N10, and N2 before N2b.
fn order(id: &str) -> (u32, String) {
    let digits = id.chars().skip(1).take_while(char::is_ascii_digit).collect::<String>();
    (digits.parse().unwrap_or_default(), id.to_owned())
}

fn line(row: &Entry) -> String {
    let Entry { what, value, unit, min, max, .. } = row;
    let limits = match (row.must, row.aim) {
        (Some(must), Some(aim)) => format!("must {must}, aim {aim}"),
        (Some(must), None) => format!("must {must}"),
        _ => String::new(),
    };
    let ok = row.ok.map_or("", |ok| if ok { "ok" } else { "SHORT" });
    format!("{what:<92} {:>16} {limits:<24} {ok:<6} {min} … {max}", format!("{value} {unit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_runs_neither_is_the_median() {
        let mut row = once(Row::beside("N6", "", "MB"), 1.0);
        row.run(3.0);
        assert_eq!(row.result().median, 2.0);
        row.run(7.0);
        assert_eq!(row.result().median, 3.0);
    }

    fn once(mut row: Row, value: f64) -> Row {
        row.run(value);
        row
    }

    #[test]
    fn a_row_is_judged_by_its_median_in_its_direction() {
        let mut less = Row::at_most("N1", "", "×", 8.0, Some(4.0));
        let mut more = Row::at_least("N7", "", "/s", 8.0, 9.0);
        for value in [9.0, 7.0, 7.5] {
            less.run(value);
            more.run(value);
        }
        let (less, more) = (less.result(), more.result());
        assert_eq!((less.ok, less.min, less.median, less.max), (Some(true), 7.0, 7.5, 9.0));
        assert_eq!(more.ok, Some(false));
        assert_eq!(once(Row::beside("N1c", "", "ms"), 1.234_56).result().value, 1.235);
    }

    #[test]
    fn rows_of_another_commit_do_not_stay() {
        let dir = tempfile::tempdir().unwrap();
        let read = || fs::read_to_string(dir.path().join("results.json")).unwrap();
        write(dir.path(), "a", &[once(Row::beside("N1", "one", "ms"), 1.0)]).unwrap();
        write(dir.path(), "a", &[once(Row::at_most("N10", "ten", "%", 0.1, None), 2.0)]).unwrap();
        let both: serde_json::Value = serde_json::from_str(&read()).unwrap();
        assert_eq!((&both["N1"]["value"], &both["N10"]["ok"]), (&1.0.into(), &false.into()));
        assert!(both["N1"]["must"].is_null() && both["machine"]["cores"].as_u64() > Some(0));
        write(dir.path(), "b", &[once(Row::beside("N2", "two", "ms"), 1.0)]).unwrap();
        assert!(!read().contains("N10") && read().contains("N2"));
        assert!(order("N2") < order("N10") && order("N2") < order("N2b") && order("N2.ext4") < order("N10"));
    }
}
