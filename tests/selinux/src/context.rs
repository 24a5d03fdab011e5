//! Security contexts, and where the kernel keeps them.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use rustix::fs::{XattrFlags, lgetxattr, lsetxattr};

const XATTR: &str = "security.selinux";

/// A process's context.
pub fn process(type_: &str, level: &str) -> String {
    format!("system_u:system_r:{type_}:{level}")
}

/// A file's context.
pub fn file(type_: &str, level: &str) -> String {
    format!("system_u:object_r:{type_}:{level}")
}

/// The context of a process, by pid or `self`.
pub fn of_process(pid: &str) -> anyhow::Result<String> {
    let path = format!("/proc/{pid}/attr/current");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(text.trim_end_matches('\0').trim().to_owned())
}

/// The label of a file; of a link, not of what it leads to.
pub fn of_file(path: &Path) -> anyhow::Result<String> {
    let mut label = vec![0; 256];
    let length =
        lgetxattr(path, XATTR, &mut label).with_context(|| format!("label of {}", path.display()))?;
    label.truncate(length);
    Ok(String::from_utf8_lossy(&label).trim_end_matches('\0').to_owned())
}

/// Type and level of a file's label.
pub fn type_and_level(path: &Path) -> anyhow::Result<String> {
    let label = of_file(path)?;
    Ok(label.splitn(3, ':').nth(2).unwrap_or_default().to_owned())
}

/// Labels a file; a link itself, not what it leads to.
pub fn label(path: &Path, context: &str) -> anyhow::Result<()> {
    lsetxattr(path, XATTR, context.as_bytes(), XattrFlags::empty())
        .with_context(|| format!("cannot label {} as {context}", path.display()))
}

/// The context of what this thread executes next.
pub fn set_exec(context: &str) -> anyhow::Result<()> {
    fs::write("/proc/thread-self/attr/exec", context).with_context(|| format!("cannot ask for {context}"))
}
