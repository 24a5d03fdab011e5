//! A load generator for CSI node plugins: any driver's socket, or several in turn, and ours beside them.
//!
//! What a driver wants to be told is in a file; `bench/spiffe-csi.json` has it for the SPIFFE CSI driver.
//!
//! `{n}` is the volume's number and `{uid}` a UID that belongs to it. The directory above the target is made,
//! as the kubelet makes it, and so are `files`; all of it is removed at the end.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use seamount_proto::csi;
use serde::Deserialize;

use crate::call::Csi;
use crate::node::{Config, Node, Volume, publish_all, unpublish_all};
use crate::report::{Row, Samples, show};

/// The arguments of `csi`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The socket of a driver; several are measured in turn.
    #[arg(long)]
    endpoint: Vec<PathBuf>,
    /// The parameters of its volumes, a file for each endpoint in the same order.
    #[arg(long)]
    parameters: Vec<PathBuf>,
    /// Calls at once; several numbers make several rounds.
    #[arg(long, value_delimiter = ',', default_value = "1,16")]
    concurrency: Vec<usize>,
    /// Volumes that are published and unpublished in each run.
    #[arg(long, default_value_t = 200)]
    volumes: usize,
    /// Volumes that are held meanwhile.
    #[arg(long, default_value_t = 0)]
    hold: usize,
    /// Runs; the drivers take turns in each.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Measures Seamount's own node, too, as the side that the others are compared with (root).
    #[arg(long)]
    ours: bool,
    /// Where `seamount-mounter` and `seamount-agent` are; beside this program without it.
    #[arg(long)]
    programs: Option<PathBuf>,
}

/// The file of `--parameters`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Parameters {
    target_path: String,
    #[serde(default = "volume_id")]
    volume_id: String,
    #[serde(default)]
    volume_context: HashMap<String, String>,
    #[serde(default)]
    secrets: HashMap<String, String>,
    #[serde(default = "yes")]
    read_only: bool,
    #[serde(default)]
    fs_type: String,
    #[serde(default)]
    files: BTreeMap<String, String>,
}

fn volume_id() -> String {
    "csi-{n}".to_owned()
}

fn yes() -> bool {
    true
}

/// What was made for the volumes; removed when it goes.
#[derive(Debug, Default)]
struct Made {
    files: Vec<PathBuf>,
    directories: Vec<PathBuf>,
}

impl Made {
    fn directory(&mut self, path: &Path) -> anyhow::Result<()> {
        let missing: Vec<_> = path.ancestors().take_while(|p| !p.exists()).map(Path::to_owned).collect();
        fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
        self.directories.extend(missing.into_iter().rev());
        Ok(())
    }

    fn file(&mut self, path: &Path, text: &str) -> anyhow::Result<()> {
        self.directory(path.parent().unwrap_or(path))?;
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        self.files.push(path.to_owned());
        Ok(())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // What a driver left in them stays, for people to see.
        self.files.iter().for_each(|path| drop(fs::remove_file(path)));
        self.directories.iter().rev().for_each(|path| drop(fs::remove_dir(path)));
    }
}

impl Parameters {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let parameters: Self = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        let distinct = ["{n}", "{uid}"].iter().any(|p| parameters.target_path.contains(p));
        ensure!(distinct, "{}: targetPath has neither {{n}} nor {{uid}}", path.display());
        Ok(parameters)
    }

    fn volume(&self, number: usize, made: &mut Made) -> anyhow::Result<Volume> {
        let (n, uid) = (number.to_string(), seamount_testkit::uuid_of(&format!("load-{number}")));
        let fill = |text: &str| text.replace("{n}", &n).replace("{uid}", &uid);
        let fill_all = |map: &HashMap<String, String>| map.iter().map(|(k, v)| (fill(k), fill(v))).collect();
        let target = fill(&self.target_path);
        let parent = Path::new(&target).parent().context("targetPath has no directory above it")?;
        made.directory(parent)?;
        for (path, text) in &self.files {
            made.file(Path::new(&fill(path)), &fill(text))?;
        }
        let access_mode = csi::volume_capability::access_mode::Mode::SingleNodeWriter.into();
        let mount =
            csi::volume_capability::MountVolume { fs_type: self.fs_type.clone(), ..Default::default() };
        Ok(Volume {
            publish: csi::NodePublishVolumeRequest {
                volume_id: fill(&self.volume_id),
                target_path: target.clone(),
                volume_capability: Some(csi::VolumeCapability {
                    access_mode: Some(csi::volume_capability::AccessMode { mode: access_mode }),
                    access_type: Some(csi::volume_capability::AccessType::Mount(mount)),
                }),
                readonly: self.read_only,
                secrets: fill_all(&self.secrets),
                volume_context: fill_all(&self.volume_context),
                ..Default::default()
            },
            unpublish: csi::NodeUnpublishVolumeRequest {
                volume_id: fill(&self.volume_id),
                target_path: target,
            },
            socket: PathBuf::new(),
        })
    }
}

/// A driver under load.
struct Side {
    name: String,
    endpoint: Option<PathBuf>,
    node: Option<Node>,
    volumes: Vec<Volume>,
    held: Vec<Volume>,
    // Dropped last.
    _made: Made,
}

impl Side {
    fn other(endpoint: &Path, parameters: &Path, args: &Args) -> anyhow::Result<Self> {
        let parameters = Parameters::read(parameters)?;
        let mut made = Made::default();
        let mut volumes: Vec<Volume> = (0..args.volumes + args.hold)
            .map(|number| parameters.volume(number, &mut made))
            .collect::<anyhow::Result<_>>()?;
        let held = volumes.split_off(args.volumes);
        Ok(Self {
            name: endpoint.display().to_string(),
            endpoint: Some(endpoint.to_owned()),
            node: None,
            volumes,
            held,
            _made: made,
        })
    }

    async fn ours(programs: &Path, args: &Args) -> anyhow::Result<Self> {
        let node = Node::started(programs, Config::default()).await?;
        let (volumes, held) = (node.volumes("new", args.volumes)?, node.volumes("held", args.hold)?);
        Ok(Self {
            name: "seamount".to_owned(),
            endpoint: None,
            node: Some(node),
            volumes,
            held,
            _made: Made::default(),
        })
    }

    async fn clients(&self, count: usize) -> anyhow::Result<Vec<Csi>> {
        let Some(path) = &self.endpoint else {
            let node = self.node.as_ref().context("no node and no endpoint")?;
            return node.clients(count).await;
        };
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(Csi::connect(path).await.with_context(|| self.name.clone())?);
        }
        Ok(all)
    }

    async fn run(&self, concurrency: usize) -> anyhow::Result<[Samples; 2]> {
        let clients = self.clients(concurrency).await?;
        let publish = publish_all(&clients, &self.volumes).await.with_context(|| self.name.clone())?;
        if let Some(node) = &self.node {
            node.settle().await?;
        }
        Ok([publish, unpublish_all(&clients, &self.volumes).await.with_context(|| self.name.clone())?])
    }
}

/// Runs the subcommand.
pub fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(args.endpoint.len() == args.parameters.len(), "give one --parameters file for each --endpoint");
    ensure!(args.ours || !args.endpoint.is_empty(), "give an --endpoint, or --ours");
    let programs = std::path::absolute(args.programs.clone().unwrap_or_else(crate::beside))?;
    let work = || super::rows::on_one_thread(measure(args, &programs));
    if args.ours {
        return seamount_testkit::namespace::private_mounts(work);
    }
    work()
}

async fn measure(args: &Args, programs: &Path) -> anyhow::Result<()> {
    let mut sides = Vec::new();
    if args.ours {
        sides.push(Side::ours(programs, args).await?);
    }
    for (endpoint, parameters) in args.endpoint.iter().zip(&args.parameters) {
        sides.push(Side::other(endpoint, parameters, args)?);
    }
    let outcome = rounds(args, &sides).await;
    // Volumes are taken back also when something failed in between.
    for side in &sides {
        let clients = side.clients(1).await?;
        for volumes in [&side.held, &side.volumes] {
            let undone = unpublish_all(&clients, volumes).await;
            if let (Ok(()), Err(error)) = (&outcome, undone) {
                return Err(error);
            }
        }
    }
    outcome
}

async fn rounds(args: &Args, sides: &[Side]) -> anyhow::Result<()> {
    for side in sides {
        publish_all(&side.clients(1).await?, &side.held).await.with_context(|| side.name.clone())?;
    }
    for &concurrency in &args.concurrency {
        let mut rows: Vec<[Row; 6]> = sides.iter().map(|side| rows_of(side, concurrency, args)).collect();
        for _ in 0..args.runs {
            let mut first: Option<[Samples; 2]> = None;
            for (side, rows) in sides.iter().zip(&mut rows) {
                let [publish, unpublish] = side.run(concurrency).await?;
                let [base, base_unpublish] =
                    first.get_or_insert_with(|| [publish.clone(), unpublish.clone()]);
                let values = [
                    publish.p50(),
                    publish.p99(),
                    publish.p50() / base.p50(),
                    unpublish.p50(),
                    unpublish.p99(),
                    unpublish.p50() / base_unpublish.p50(),
                ];
                rows.iter_mut().zip(values).for_each(|(row, value)| row.run(value));
            }
        }
        rows.iter().flatten().for_each(show);
    }
    Ok(())
}

fn rows_of(side: &Side, concurrency: usize, args: &Args) -> [Row; 6] {
    let row = |what: &str, unit| {
        let what = format!("{}, c={concurrency}, {} held: {what}", side.name, args.hold);
        Row::beside("", &what, unit)
    };
    [
        row("publish p50", "ms"),
        row("publish p99", "ms"),
        row("publish p50 / the first driver's", "×"),
        row("unpublish p50", "ms"),
        row("unpublish p99", "ms"),
        row("unpublish p50 / the first driver's", "×"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_filled_in_and_what_was_made_goes_again() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().display().to_string();
        let file = dir.path().join("parameters.json");
        let text = format!(
            r#"{{"targetPath": "{root}/pods/{{uid}}/v/mount", "volumeContext": {{"pod": "{{uid}}"}},
                "files": {{"{root}/pods/{{uid}}/v/vol_data.json": "{{n}}"}}}}"#
        );
        fs::write(&file, text).unwrap();
        let mut made = Made::default();
        let volume = Parameters::read(&file).unwrap().volume(7, &mut made).unwrap();
        let uid = seamount_testkit::uuid_of("load-7");
        assert_eq!(volume.publish.volume_context["pod"], uid);
        assert_eq!(volume.publish.volume_id, "csi-7");
        assert!(volume.publish.readonly);
        let data = Path::new(&volume.unpublish.target_path).with_file_name("vol_data.json");
        assert_eq!(fs::read_to_string(&data).unwrap(), "7");
        drop(made);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "only the parameters are left");
        fs::write(&file, r#"{"targetPath": "/a/b"}"#).unwrap();
        assert!(Parameters::read(&file).is_err(), "all volumes would be one");
    }
}
