//! One line per event on standard error: `level=… msg=… key=value …`.

use std::fmt::Display;
use std::io::Write;

use rustix::event::PollFlags;
use seamount_mounter_protocol::names::Volume;

use crate::wire::ready;

/// Writes one event. A log that cannot be written is no reason to fail, and one whose reader stands still is
/// none to wait: its pipe is full then, and the line is lost. (What is shorter than a page, as each line
/// here, a pipe takes whole: pipe(7).)
pub fn event(level: &str, msg: &str, fields: &[(&str, &dyn Display)]) {
    let mut out = std::io::stderr();
    if ready(&out, PollFlags::OUT) {
        let _ = out.write_all(line(level, msg, fields).as_bytes());
    }
}

fn line(level: &str, msg: &str, fields: &[(&str, &dyn Display)]) -> String {
    let mut line = format!("level={level} msg={msg:?}");
    for (key, value) in fields {
        let value = value.to_string();
        let plain = !value.is_empty() && value.bytes().all(|b| b.is_ascii_graphic() && !b"\"=".contains(&b));
        line += &if plain { format!(" {key}={value}") } else { format!(" {key}={value:?}") };
    }
    line + "\n"
}

/// Something went wrong, and why.
pub fn warn(msg: &str, reason: &dyn Display) {
    let level = "warn";
    event(level, msg, &[("reason", reason)]);
}

/// Something was done, with a volume or for the node.
pub fn done<'a>(msg: &str, volume: impl Into<Option<&'a Volume>>) {
    match volume.into() {
        Some(volume) => event("info", msg, &[("pod", &volume.pod), ("volume", &volume.name)]),
        None => event("info", msg, &[]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        assert_eq!(
            line("info", "a b", &[("n", &1), ("s", &"x y")]),
            "level=info msg=\"a b\" n=1 s=\"x y\"\n"
        );
        let forged = line("info", "a", &[("s", &"x\nlevel=error msg=\"no\""), ("e", &"")]);
        assert_eq!(forged, "level=info msg=\"a\" s=\"x\\nlevel=error msg=\\\"no\\\"\" e=\"\"\n");
    }
}
