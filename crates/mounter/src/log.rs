//! One line per event on standard error: `level=… msg=… key=value …`.

use std::fmt::Display;
use std::io::Write;

use seamount_mounter::names::Volume;

/// Writes one event. A log that cannot be written is no reason to fail.
pub fn event(level: &str, msg: &str, fields: &[(&str, &dyn Display)]) {
    let mut line = format!("level={level} msg={msg:?}");
    for (key, value) in fields {
        let value = value.to_string();
        let plain =
            value.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'=') && !value.is_empty();
        line += &if plain { format!(" {key}={value}") } else { format!(" {key}={value:?}") };
    }
    line.push('\n');
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Something was done, with a volume or for the node.
pub fn done<'a>(msg: &str, volume: impl Into<Option<&'a Volume>>) {
    match volume.into() {
        Some(volume) => event("info", msg, &[("pod", &volume.pod), ("volume", &volume.name)]),
        None => event("info", msg, &[]),
    }
}
