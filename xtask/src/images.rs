//! Static binaries and the images made of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};

use crate::image::{Image, Layer, full_name};
use crate::{cargo, root, succeed};

/// What all files of the node's image may have together, in bytes.
const LIMIT: u64 = 30 * 1024 * 1024;

/// The arguments of `xtask images`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the archives go.
    #[arg(long, default_value = "target/images")]
    out: PathBuf,
    /// The tag of all images.
    #[arg(long, default_value = "dev")]
    tag: String,
}

/// An image: its name without the tag, and its binaries.
struct Plan {
    name: &'static str,
    binaries: &'static [&'static str],
    /// A container without a command runs this one; the DaemonSet names its own.
    entry: Option<&'static str>,
    limit: Option<u64>,
}

/// How the programs are linked. Packed relocations (RELR, which glibc has from 2.36 on) are not a page long,
/// where each of 18,000 pointers otherwise takes 24 bytes that are read at the start and stay resident.
const STATIC: &str = "-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs";

const PLANS: [Plan; 2] = [
    Plan {
        name: "seamount",
        binaries: &["seamount-mounter", "seamount-agent", "seamount"],
        entry: Some("/seamount"),
        limit: Some(LIMIT),
    },
    Plan { name: "seamount-examples", binaries: &["mtls-server", "mtls-client"], entry: None, limit: None },
];

/// Runs the subcommand.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let binaries = node_programs()?;
    for plan in &PLANS {
        pack(plan, &binaries, &root().join(&args.out), &args.tag)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds the programs as the images have them; their directory.
pub fn node_programs() -> anyhow::Result<PathBuf> {
    build(&["seamount-mounter"])?;
    build(&["seamount-agent", "seamount", "seamount-examples"])
}

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// Builds static binaries of packages; their directory. The mounter by itself: built along with the others,
/// its crates would have the features that they ask for.
pub fn build(packages: &[&str]) -> anyhow::Result<PathBuf> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut build = cargo();
    build.args(["build", "--release", "--locked", "--target", &triple]);
    build.args(packages.iter().flat_map(|package| ["-p", package]));
    // A static-pie needs no base image. In the environment, so that the tests' debug builds stay as they are.
    succeed(build.env("RUSTFLAGS", STATIC))?;
    Ok(target().join(triple).join("release"))
}

fn pack(plan: &Plan, binaries: &Path, out: &Path, tag: &str) -> anyhow::Result<()> {
    let mut layer = Layer::new();
    let mut total = 0;
    println!("{}", plan.name);
    for binary in plan.binaries {
        let path = binaries.join(binary);
        let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(
            !has_interpreter(&content)?,
            "{} is not static: it asks for a dynamic linker, which the image lacks",
            path.display()
        );
        layer.file(binary, 0o755, &content)?;
        total += content.len() as u64;
        println!("  {binary:<20} {:>6.2} MB", megabytes(content.len() as u64));
    }
    let image = Image {
        name: full_name(&format!("{}:{tag}", plan.name)),
        entry: plan.entry.iter().map(|e| (*e).to_owned()).collect(),
        cmd: Vec::new(),
        env: Vec::new(),
        user: String::new(),
        layer: layer.finish()?,
    };
    let file = out.join(format!("{}.tar", plan.name));
    let packed = image.write(&file)?;
    println!("  {:<20} {:>6.2} MB", "all files", megabytes(total));
    println!("  {:<20} {:>6.2} MB  {}", "archive", megabytes(packed), file.display());
    if let Some(limit) = plan.limit {
        ensure!(total <= limit, "{} has {total} bytes of files; the limit is {limit}", plan.name);
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "for people to read")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Whether a 64-bit little-endian ELF file has a program header of type PT_INTERP (System V ABI, chapter 5).
fn has_interpreter(elf: &[u8]) -> anyhow::Result<bool> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, size: usize| -> anyhow::Result<u64> {
        let bytes = elf.get(at..at + size).context("the ELF file is cut short")?;
        Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    ensure!(elf.starts_with(b"\x7fELF\x02\x01"), "no 64-bit little-endian ELF file");
    let (offset, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for i in 0..count {
        if number(usize::try_from(offset + i * size)?, 4)? == PT_INTERP {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_binary_is_told_from_other_files() {
        // The test itself is linked dynamically, unless it was built for an image.
        let this = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(has_interpreter(&this).unwrap(), !cfg!(target_feature = "crt-static"));
        assert!(has_interpreter(b"#!/bin/sh\n").is_err());
        assert!(has_interpreter(&this[..60]).is_err());
    }

    #[test]
    fn a_file_without_that_header_is_static() {
        let mut elf = vec![0_u8; 64 + 2 * 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (elf[32], elf[54], elf[56]) = (64, 56, 2);
        elf[64] = 1;
        elf[64 + 56] = 2;
        assert!(!has_interpreter(&elf).unwrap());
        elf[64 + 56] = 3;
        assert!(has_interpreter(&elf).unwrap());
    }
}
