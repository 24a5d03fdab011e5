//! One OCI image archive from files: one layer, no base, the same bytes for the same input.
//!
//! `ctr images import`, `podman load` and `skopeo` read it (OCI Image Layout 1.0; containerd takes the name
//! from the annotation `io.containerd.image.name`).

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context as _, bail};
use aws_lc_rs::digest::{SHA256, digest};
use flate2::{Compression, GzBuilder};
use oci_spec::image::{
    Arch, ConfigBuilder, Descriptor, DescriptorBuilder, HistoryBuilder, ImageConfigurationBuilder,
    ImageIndexBuilder, ImageManifestBuilder, MediaType, Os, PlatformBuilder, RootFsBuilder, Sha256Digest,
};

/// The arguments of `xtask image`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image's name, such as `test.local/pause:1`; without a registry it is one of docker.io/library.
    #[arg(long)]
    pub name: String,
    /// The archive to write.
    #[arg(long)]
    pub out: PathBuf,
    /// The entry point, split at spaces.
    #[arg(long, default_value = "")]
    pub entry: String,
    /// The default arguments, split at spaces.
    #[arg(long, default_value = "")]
    pub cmd: String,
    /// KEY=VALUE.
    #[arg(long)]
    pub env: Vec<String>,
    /// uid, or uid:gid.
    #[arg(long, default_value = "")]
    pub user: String,
    /// A symbolic link, NAME=TARGET.
    #[arg(long)]
    pub link: Vec<String>,
    /// A directory, PATH or PATH:MODE (octal).
    #[arg(long)]
    pub dir: Vec<String>,
    /// Files, SOURCE:PATH or SOURCE:PATH:MODE (octal, 755 by default).
    pub files: Vec<String>,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut layer = Layer::new();
    for dir in &args.dir {
        let (path, mode) = dir.split_once(':').unwrap_or((dir, "755"));
        layer.directory(path, octal(mode)?)?;
    }
    for file in &args.files {
        let mut parts = file.split(':');
        let (Some(source), Some(path)) = (parts.next(), parts.next()) else {
            bail!("{file:?} is not SOURCE:PATH or SOURCE:PATH:MODE");
        };
        let mode = octal(parts.next().unwrap_or("755"))?;
        layer.file(path, mode, &fs::read(source).with_context(|| format!("cannot read {source}"))?)?;
    }
    for link in &args.link {
        let (name, target) = link.split_once('=').with_context(|| format!("{link:?} is not NAME=TARGET"))?;
        layer.link(name, target)?;
    }
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
    let image = Image {
        name: full_name(&args.name),
        entry: words(&args.entry),
        cmd: words(&args.cmd),
        env: args.env.clone(),
        user: args.user.clone(),
        layer: layer.finish()?,
    };
    let written = image.write(&args.out)?;
    println!("{} {} {} bytes", image.name, args.out.display(), written);
    Ok(ExitCode::SUCCESS)
}

fn octal(text: &str) -> anyhow::Result<u32> {
    u32::from_str_radix(text, 8).with_context(|| format!("{text:?} is no octal mode"))
}

/// The name as containerd and the kubelet look it up: `seamount:dev` is `docker.io/library/seamount:dev`.
pub fn full_name(name: &str) -> String {
    let is_registry = |part: &str| part == "localhost" || part.contains(['.', ':']);
    let full = match name.split_once('/') {
        Some((first, _)) if is_registry(first) => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    };
    let last = full.rsplit('/').next().unwrap_or_default();
    if last.contains(':') { full } else { format!("{full}:latest") }
}

/// The files of an image, as an uncompressed tar in which nothing depends on when it was made, or by which
/// user.
pub struct Layer {
    tar: tar::Builder<Vec<u8>>,
    directories: BTreeSet<String>,
}

impl Layer {
    /// An empty one.
    pub fn new() -> Self {
        Self { tar: tar::Builder::new(Vec::new()), directories: BTreeSet::new() }
    }

    /// A directory and those above it.
    pub fn directory(&mut self, path: &str, mode: u32) -> anyhow::Result<()> {
        let path = path.trim_matches('/');
        self.parents(path)?;
        if !path.is_empty() && self.directories.insert(path.to_owned()) {
            let mut header = header(tar::EntryType::Directory, mode, 0);
            self.tar.append_data(&mut header, format!("{path}/"), std::io::empty())?;
        }
        Ok(())
    }

    /// A file and the directories above it.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> anyhow::Result<()> {
        let path = path.trim_matches('/');
        self.parents(path)?;
        let mut header = header(tar::EntryType::Regular, mode, content.len() as u64);
        self.tar.append_data(&mut header, path, content).with_context(|| format!("cannot add {path}"))
    }

    /// A symbolic link and the directories above it.
    pub fn link(&mut self, path: &str, target: &str) -> anyhow::Result<()> {
        let path = path.trim_matches('/');
        self.parents(path)?;
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        self.tar.append_link(&mut header, path, target).with_context(|| format!("cannot add {path}"))
    }

    fn parents(&mut self, path: &str) -> anyhow::Result<()> {
        match path.rsplit_once('/') {
            Some((parent, _)) => self.directory(parent, 0o755),
            None => Ok(()),
        }
    }

    /// The bytes.
    pub fn finish(self) -> anyhow::Result<Vec<u8>> {
        self.tar.into_inner().context("cannot finish the layer")
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// An image, ready to be written.
pub struct Image {
    /// With registry and tag.
    pub name: String,
    /// The entry point; empty for none.
    pub entry: Vec<String>,
    /// The default arguments.
    pub cmd: Vec<String>,
    /// KEY=VALUE, beside PATH.
    pub env: Vec<String>,
    /// uid, or uid:gid; empty for root.
    pub user: String,
    /// From [`Layer::finish`].
    pub layer: Vec<u8>,
}

impl Image {
    /// Writes the archive and returns its size in bytes. The file appears whole or not at all.
    pub fn write(&self, out: &PathBuf) -> anyhow::Result<u64> {
        let bytes = self.archive().with_context(|| format!("cannot make the image {}", self.name))?;
        if let Some(parent) = out.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        let partial = out.with_extension("partial");
        fs::write(&partial, &bytes).with_context(|| format!("cannot write {}", partial.display()))?;
        fs::rename(&partial, out).with_context(|| format!("cannot write {}", out.display()))?;
        Ok(bytes.len() as u64)
    }

    fn archive(&self) -> anyhow::Result<Vec<u8>> {
        let arch = match std::env::consts::ARCH {
            "x86_64" => Arch::Amd64,
            "aarch64" => Arch::ARM64,
            other => bail!("no images for the processor {other}"),
        };
        let mut blobs = Vec::new();
        let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
        gzip.write_all(&self.layer)?;
        let layer = blob(&mut blobs, MediaType::ImageLayerGzip, gzip.finish()?)?;

        let mut env = vec!["PATH=/usr/local/bin:/usr/bin:/bin:/sbin:/".to_owned()];
        env.extend(self.env.iter().cloned());
        let mut config = ConfigBuilder::default().env(env);
        if !self.entry.is_empty() {
            config = config.entrypoint(self.entry.clone());
        }
        if !self.cmd.is_empty() {
            config = config.cmd(self.cmd.clone());
        }
        if !self.user.is_empty() {
            config = config.user(self.user.clone());
        }
        let configuration = ImageConfigurationBuilder::default()
            .architecture(arch.clone())
            .os(Os::Linux)
            .config(config.build()?)
            .rootfs(
                RootFsBuilder::default()
                    .typ("layers")
                    .diff_ids(vec![format!("sha256:{}", sha256(&self.layer))])
                    .build()?,
            )
            .history(vec![HistoryBuilder::default().created_by("xtask image").build()?])
            .build()?;
        let config = blob(&mut blobs, MediaType::ImageConfig, serde_json::to_vec(&configuration)?)?;

        let manifest = ImageManifestBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageManifest)
            .config(config)
            .layers(vec![layer])
            .build()?;
        let mut manifest = blob(&mut blobs, MediaType::ImageManifest, serde_json::to_vec(&manifest)?)?;
        manifest.set_platform(Some(PlatformBuilder::default().architecture(arch).os(Os::Linux).build()?));
        // Sorted by hand below: the library keeps annotations in a map of random order.
        let names = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
        manifest.set_annotations(Some(
            names.map(|n| (n.to_owned(), self.name.clone())).into_iter().collect::<HashMap<_, _>>(),
        ));
        let index = ImageIndexBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageIndex)
            .manifests(vec![manifest])
            .build()?;
        // serde_json's own maps are sorted.
        let index = serde_json::to_vec(&serde_json::to_value(&index)?)?;

        let mut archive = Layer::new();
        archive.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        archive.file("index.json", 0o644, &index)?;
        for (hash, content) in blobs {
            archive.file(&format!("blobs/sha256/{hash}"), 0o644, &content)?;
        }
        archive.finish()
    }
}

fn sha256(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

fn blob(blobs: &mut Vec<(String, Vec<u8>)>, kind: MediaType, content: Vec<u8>) -> anyhow::Result<Descriptor> {
    let hash = sha256(&content);
    let descriptor = DescriptorBuilder::default()
        .media_type(kind)
        .digest(Sha256Digest::from_str(&hash)?)
        .size(content.len() as u64)
        .build()?;
    blobs.push((hash, content));
    Ok(descriptor)
}

#[cfg(test)]
mod tests;
