//! Takes a YAML mapping apart field by field and collects every problem on the way.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use super::Problem;
use crate::{Size, format_duration, parse_duration, parse_size};

/// All that is wrong so far.
#[derive(Default)]
pub(super) struct Problems(pub Vec<Problem>);

impl Problems {
    pub fn add(&mut self, field: &str, what: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Problem { field: field.to_owned(), what: what.into(), remedy: remedy.into() });
    }
}

/// One mapping. What is not taken by the end is unknown.
pub(super) struct Section {
    path: String,
    fields: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Section {
    pub fn root(fields: Map<String, Value>) -> Self {
        Self { path: String::new(), fields, known: Vec::new() }
    }

    /// The full path of a field.
    pub fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    pub fn has(&self, name: &str) -> bool {
        self.fields.get(name).is_some_and(|v| !v.is_null())
    }

    fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.fields.remove(name).filter(|v| !v.is_null())
    }

    /// Takes a field without looking at it.
    pub fn ignore(&mut self, name: &'static str) {
        self.take(name);
    }

    /// A mapping; empty where it is absent.
    pub fn section(&mut self, name: &'static str, problems: &mut Problems) -> Section {
        let path = self.path(name);
        let fields = match self.take(name) {
            None => Map::new(),
            Some(Value::Object(fields)) => fields,
            Some(other) => {
                problems.add(&path, format!("is {}", kind(&other)), "write a mapping");
                Map::new()
            }
        };
        Section { path, fields, known: Vec::new() }
    }

    pub fn string(&mut self, name: &'static str, problems: &mut Problems) -> Option<String> {
        match self.take(name)? {
            Value::String(text) => Some(text),
            other => {
                problems.add(&self.path(name), format!("is {}", kind(&other)), "write a text (in quotes)");
                None
            }
        }
    }

    /// A list of mappings; none where it is absent or of another kind.
    pub fn sections(&mut self, name: &'static str, problems: &mut Problems) -> Option<Vec<Section>> {
        let path = self.path(name);
        let items = match self.take(name)? {
            Value::Array(items) => items,
            other => {
                problems.add(&path, format!("is {}", kind(&other)), "write a list of mappings");
                return None;
            }
        };
        let mut sections = Vec::new();
        for (number, item) in items.into_iter().enumerate() {
            let path = format!("{path}[{number}]");
            match item {
                Value::Object(fields) => sections.push(Section { path, fields, known: Vec::new() }),
                other => problems.add(&path, format!("is {}", kind(&other)), "write a mapping"),
            }
        }
        Some(sections)
    }

    /// A list of texts, or one text alone. None where it is absent or of another kind.
    pub fn texts(&mut self, name: &'static str, problems: &mut Problems) -> Option<Vec<String>> {
        let items = match self.take(name)? {
            Value::Array(items) => items,
            one => vec![one],
        };
        let text = |item: Value| match item {
            Value::String(text) => Ok(text),
            other => Err(kind(&other)),
        };
        match items.into_iter().map(text).collect() {
            Ok(texts) => Some(texts),
            Err(kind) => {
                problems.add(&self.path(name), format!("has {kind}"), "write a list of texts (in quotes)");
                None
            }
        }
    }

    pub fn boolean(&mut self, name: &'static str, default: bool, problems: &mut Problems) -> bool {
        match self.take(name) {
            None => default,
            Some(Value::Bool(value)) => value,
            Some(other) => {
                problems.add(&self.path(name), format!("is {}", kind(&other)), "write true or false");
                default
            }
        }
    }

    /// A whole number between `min` and `max`.
    pub fn number(
        &mut self,
        name: &'static str,
        default: u32,
        (min, max): (u32, u32),
        problems: &mut Problems,
    ) -> u32 {
        let Some(value) = self.take(name) else { return default };
        let number = value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| (min..=max).contains(n));
        number.unwrap_or_else(|| {
            problems.add(
                &self.path(name),
                format!("is {}", shown(&value)),
                format!("write a whole number from {min} to {max}"),
            );
            default
        })
    }

    /// A size in bytes between `min` and `max`; none where it is absent.
    pub fn size(
        &mut self,
        name: &'static str,
        (min, max): (u64, u64),
        problems: &mut Problems,
    ) -> Option<u64> {
        let value = self.take(name)?;
        let bytes = match &value {
            Value::String(text) => parse_size(text).ok(),
            other => other.as_u64(),
        };
        let bytes = bytes.filter(|bytes| (min..=max).contains(bytes));
        if bytes.is_none() {
            problems.add(
                &self.path(name),
                format!("is {}", shown(&value)),
                format!("write a size from {} to {}, with Ki, Mi or Gi", Size(min), Size(max)),
            );
        }
        bytes
    }

    pub fn duration(&mut self, name: &'static str, default: Duration, problems: &mut Problems) -> Duration {
        let Some(value) = self.take(name) else { return default };
        let read = match &value {
            Value::String(text) => parse_duration(text).map_err(|e| e.to_string()),
            other => Err(format!("{} without a unit is no duration", shown(other))),
        };
        read.unwrap_or_else(|why| {
            problems.add(
                &self.path(name),
                format!("{}: {why}", shown(&value)),
                format!("write for instance {}", format_duration(default)),
            );
            default
        })
    }

    /// One of some words.
    pub fn word<T: Copy>(
        &mut self,
        name: &'static str,
        default: T,
        words: &[(&str, T)],
        problems: &mut Problems,
    ) -> T {
        match self.string(name, problems) {
            None => default,
            Some(text) => word(&self.path(name), &text, default, words, problems),
        }
    }

    pub fn file(&mut self, name: &'static str, problems: &mut Problems) -> Option<PathBuf> {
        let text = self.string(name, problems)?;
        absolute(&self.path(name), &text, problems)
    }

    /// Every field that was not taken is unknown.
    pub fn end(self, problems: &mut Problems) {
        for name in self.fields.keys() {
            let near = self.known.iter().find(|k| k.eq_ignore_ascii_case(name));
            let remedy = match near {
                Some(near) => format!("write {near}"),
                None => format!("remove it; known here: {}", self.known.join(", ")),
            };
            let name: String = name.escape_debug().take(80).collect();
            problems.add(&self.path(&name), "is not known", remedy);
        }
    }
}

pub(super) fn word<T: Copy>(
    path: &str,
    text: &str,
    default: T,
    words: &[(&str, T)],
    problems: &mut Problems,
) -> T {
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return *value;
    }
    let all: Vec<_> = words.iter().map(|(word, _)| *word).collect();
    problems.add(path, format!("is {text:?}"), format!("write one of {}", all.join(", ")));
    default
}

/// An absolute path without `.` and `..` and without a slash at its end.
pub(super) fn absolute(path: &str, text: &str, problems: &mut Problems) -> Option<PathBuf> {
    let plain = Path::new(text).components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    let spelled = text == "/" || !text.split('/').skip(1).any(|part| part == "." || part == "..");
    if !text.starts_with('/') || !plain || !spelled || text.contains('\0') {
        problems.add(path, format!("is {text:?}"), "write an absolute path without `.` and `..`");
        return None;
    }
    if text.len() >= 4096 {
        problems.add(path, format!("has {} bytes", text.len()), "write a path of less than 4096 bytes");
        return None;
    }
    // `components` drops double and closing slashes.
    Some(Path::new(text).components().collect())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) | Value::Object(_) => kind(value).to_owned(),
        scalar => scalar.to_string().chars().take(80).collect(),
    }
}
