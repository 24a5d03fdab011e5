//! `status` and `volumes` as text.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use seamount_proto::node;
use serde::Serialize;

use super::model::{Report, Volumes};
use super::time::{relative, rfc3339, span, unix};

/// Lines of the log that `text` shows; `wide` shows all.
const LINES: usize = 5;

/// The document, indented, with a line feed.
pub fn json(document: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(document).context("cannot write JSON")? + "\n")
}

/// Text of others on one line: control characters may come from a pod's author.
pub fn plain(text: &str) -> String {
    text.split(|c: char| c.is_control() || c.is_whitespace())
        .filter(|w| !w.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { plain(text) }
}

/// `2027-01-15T08:00:00Z (in 29m)`; a dash where there is no such time.
fn when(seconds: i64, now: i64) -> String {
    rfc3339(seconds).map_or_else(|| "-".to_owned(), |text| format!("{text} ({})", relative(seconds, now)))
}

fn plural(count: impl Into<i128>, what: &str) -> String {
    let count = count.into();
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn up(started: i64, now: i64) -> String {
    if started == 0 {
        return "start unknown".to_owned();
    }
    format!("up {}", span(Duration::from_secs(u64::try_from(now - started).unwrap_or_default())))
}

fn size(bytes: u64) -> String {
    let tenths = |unit: u64| format!("{}.{}", bytes / unit, bytes % unit * 10 / unit);
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", tenths(1024)),
        _ => format!("{} MiB", tenths(1_048_576)),
    }
}

/// The node in some twenty lines.
pub fn status(report: &Report, wide: bool, now: SystemTime) -> String {
    let (now, raw) = (unix(now), &report.raw);
    let mut out = String::new();
    let mut line = |name: &str, text: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name:<12} {text}");
    };
    let name = if report.node.is_empty() { "(unknown)" } else { &report.node };
    line("node", format!("{name}, {}", report.kubelet_root));
    let agent = &report.agent;
    line("agent", format!("{}, pid {}, {}", agent.version, agent.pid, up(raw.agent_started, now)));
    line("mounter", mounter(raw.mounter.as_ref(), now));
    line(
        "identity",
        match (report.source.as_str(), &report.trust_domain) {
            ("authority", Some(domain)) => format!("authority, trust domain {domain}"),
            ("directory", _) => "directory: another provider's Workload API socket".to_owned(),
            _ => "none: no valid configuration yet".to_owned(),
        },
    );
    if let Some(authority) = raw.authority.as_ref().filter(|a| a.state != "none") {
        line("authority", authority_line(authority, now));
        for (what, validity) in
            authority.roots.iter().map(|r| ("root", r)).chain(authority.issuer.iter().map(|i| ("issuer", i)))
        {
            line("", format!("{what} until {}", when(validity.not_after, now)));
        }
    }
    if raw.drivers.is_empty() {
        line("drivers", "unknown".to_owned());
    }
    for (i, driver) in raw.drivers.iter().enumerate() {
        let registration = driver.registration.clone().unwrap_or_default();
        let reason = plain(&registration.reason);
        let text = match registration.state.as_str() {
            "registered" => format!("registered, known since {}", when(registration.since, now)),
            "refused" => format!("the kubelet refused it: {reason}"),
            "unreachable" => reason,
            _ => "the kubelet has not registered it yet".to_owned(),
        };
        line(if i == 0 { "drivers" } else { "" }, format!("{}: {text}", plain(&driver.name)));
    }
    line("ready", if report.ready { "yes" } else { "no" }.to_owned());
    for condition in &raw.conditions {
        let text = plain(&condition.text);
        let text = if text.is_empty() { text } else { format!(": {text}") };
        let since = if condition.state == "not ready" || wide {
            format!(" (since {})", when(condition.since, now))
        } else {
            String::new()
        };
        line("", format!("{} {}{text}{since}", condition.name, condition.state));
    }
    let total: u64 = report.volumes.values().sum();
    let states: Vec<_> = report.volumes.iter().map(|(state, count)| format!("{count} {state}")).collect();
    let states = if states.is_empty() { String::new() } else { format!(": {}", states.join(", ")) };
    line("volumes", format!("{total}{states}; {} overdue, {} expired", report.overdue, report.expired));
    line(
        "clients",
        format!("{}, {}", plural(report.connections, "connection"), plural(report.streams, "stream")),
    );
    line(
        "descriptors",
        format!(
            "agent {} of {}, mounter may have {}",
            agent.descriptors, agent.descriptor_limit, report.mounter.descriptor_limit
        ),
    );
    let state = &report.state;
    line(
        "state",
        match state.available {
            true => format!(
                "{} of {}, {} of {} files",
                size(state.bytes_used),
                size(state.bytes),
                state.inodes_used,
                state.inodes
            ),
            false => format!("not there: {}", plain(&state.problem)),
        },
    );
    let shown = if wide { usize::MAX } else { LINES };
    for (i, entry) in raw.log.iter().take(shown).enumerate() {
        let head = if i == 0 { "log" } else { "" };
        line(head, format!("{} {}: {}", relative(entry.time, now), entry.level, plain(&entry.text)));
    }
    out
}

fn mounter(mounter: Option<&node::Mounter>, now: i64) -> String {
    let Some(mounter) = mounter else { return "unknown".to_owned() };
    if !mounter.connected {
        return format!("not connected: {}", plain(&mounter.problem));
    }
    let answers = match mounter.answers {
        true => "answers".to_owned(),
        false => format!("DOES NOT ANSWER: {}", plain(&mounter.problem)),
    };
    let has = |what, yes| if yes { format!(", {what}") } else { format!(", no {what}") };
    format!(
        "{}, {}, {answers}; {}{}{}",
        mounter.build,
        up(mounter.started, now),
        plural(mounter.connections, "connection"),
        has("idmap", mounter.idmap),
        has("noswap", mounter.noswap)
    )
}

fn authority_line(authority: &node::Authority, now: i64) -> String {
    let mut text = format!("{} since {}", authority.state, when(authority.since, now));
    if authority.last_success != 0 {
        let _ = write!(text, ", signed {}", relative(authority.last_success, now));
    }
    if !authority.trouble.is_empty() {
        let _ = write!(text, "; {}", plain(&authority.trouble));
    }
    if authority.last_failure != 0 {
        let error = plain(&authority.last_error);
        let _ = write!(text, "; last failure {}: {error}", relative(authority.last_failure, now));
    }
    text
}

/// One line for each volume.
pub fn volumes(volumes: &Volumes, wide: bool, now: SystemTime) -> String {
    let now = unix(now);
    let mut head = vec![
        "POD",
        "UID",
        "VOLUME",
        "DRIVER",
        "SPIFFE ID",
        "EXPIRES",
        "SERIAL",
        "STREAMS",
        "SOURCE",
        "HEALTH",
    ];
    if wide {
        head.extend(["VOLUME ID", "SOCKET", "CONNECTIONS", "ROTATES", "RECORD", "ON DISK", "LAST ERROR"]);
    }
    let mut rows: Vec<Vec<String>> = vec![head.into_iter().map(str::to_owned).collect()];
    rows.extend(volumes.raw.iter().map(|v| row(v, wide, now)));
    let mut out = table(&rows);
    if volumes.raw.is_empty() {
        out = "no volumes\n".to_owned();
    }
    if let Some(problem) = &volumes.mounter_problem {
        let _ = writeln!(
            out,
            "\nThe mounter could not be asked, volumes that only it knows are missing: {}",
            plain(problem)
        );
    }
    out
}

fn row(v: &node::Volume, wide: bool, now: i64) -> Vec<String> {
    let pod = if v.pod.is_empty() { "-".to_owned() } else { plain(&format!("{}/{}", v.namespace, v.pod)) };
    let health: Vec<_> = v.faults.iter().map(|f| f.reason.as_str()).collect();
    let health = match health.as_slice() {
        [] if v.busy => "busy".to_owned(),
        [] => "ok".to_owned(),
        all => all.join(","),
    };
    let mut row = vec![
        pod,
        v.pod_uid.clone(),
        v.name.clone(),
        or_dash(&v.driver),
        or_dash(&v.spiffe_id),
        when(v.not_after, now),
        or_dash(&v.serial),
        v.streams.to_string(),
        v.source.clone(),
        health,
    ];
    if wide {
        let mut on_disk = Vec::from([if v.on_disk { "yes" } else { "no" }.to_owned()]);
        on_disk.extend(v.orphan.then(|| "orphan".to_owned()));
        on_disk.extend(v.foreign.then(|| "foreign".to_owned()));
        on_disk.extend((v.mounts > 0).then(|| plural(v.mounts, "mount")));
        row.extend([
            or_dash(&v.volume_id),
            if v.cookie == 0 { "-".to_owned() } else { v.cookie.to_string() },
            v.connections.to_string(),
            when(if v.failures > 0 { v.next_attempt } else { v.rotate_at }, now),
            v.generation.to_string(),
            on_disk.join(","),
            or_dash(&v.last_error),
        ]);
    }
    row
}

/// Columns two spaces apart.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}
