//! The kubelet's `vol_data.json`: says whose a volume is, or that it is not clear; never anything in between.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::sync::OnceLock;

use seamount_mounter_protocol::names::Volume;
use seamount_mounter_protocol::{Fault, Reply};
use serde_json::{Value, json};

use crate::error;
use crate::path::Place;
use crate::{input, world};

const DRIVER: &str = "csi.spiffe.io";
const POD: &str = "3f2c1a9e-0b1d-4c5e-8f70-a1b2c3d4e5f6";

struct Scratch {
    pods: std::os::fd::OwnedFd,
    place: std::path::PathBuf,
}

fn scratch() -> &'static Scratch {
    static SCRATCH: OnceLock<Scratch> = OnceLock::new();
    SCRATCH.get_or_init(|| {
        let place = world::base().join("pods").join(POD).join("volumes/kubernetes.io~csi/v");
        world::directory(&place);
        Scratch { pods: fs::File::open(world::base().join("pods")).unwrap().into(), place }
    })
}

/// 0: the file's content. 1: the same in a file that is not the kubelet's. 2: a file of any length.
pub fn run(data: &[u8]) {
    let (kind, rest) = input::kind(data, 3);
    let file = scratch().place.join("vol_data.json");
    let _ = fs::remove_file(&file);
    match kind {
        0 => {
            fs::write(&file, rest).unwrap();
            content(&file, rest);
        }
        1 => strange(&file, rest),
        _ => {
            let length = usize::from(rest.first().copied().unwrap_or_default()) * 20;
            let good = json!({"driverName": DRIVER, "volumeHandle": "csi-v"}).to_string();
            let padded = format!("{good}{}", " ".repeat(length));
            fs::write(&file, &padded).unwrap();
            assert_eq!(owner().is_ok_and(|o| o.is_some()), padded.len() <= 4096);
        }
    }
}

fn place() -> Place {
    let volume = volume(DRIVER, "csi-v");
    Place::open(&scratch().pods, &volume.pod, &volume.name).unwrap().unwrap()
}

fn volume(driver: &str, id: &str) -> Volume {
    let (driver, pod) = (driver.parse().unwrap(), POD.parse().unwrap());
    Volume { driver, pod, name: "v".parse().unwrap(), id: id.parse().unwrap() }
}

fn owner() -> error::Result<Option<(String, String)>> {
    place().owner()
}

fn content(file: &Path, bytes: &[u8]) {
    let value: Option<Value> = serde_json::from_slice(bytes).ok().filter(|_| bytes.len() <= 4096);
    let field = |key| value.as_ref()?.as_object()?.get(key)?.as_str();
    let expected = field("driverName").zip(field("volumeHandle"));
    match owner() {
        Ok(Some((driver, id))) => {
            assert_eq!(expected, Some((driver.as_str(), id.as_str())));
            for (name, handle) in [(DRIVER, "csi-v"), ("csi.other", "csi-v"), (DRIVER, "csi-w")] {
                let ours = place().is(&volume(name, handle));
                assert_eq!(ours.is_ok_and(|ours| ours), driver == name && id == handle);
            }
            // A stranger's words in a message go through the protocol.
            if let Err(error) = place().is(&volume("none", "csi-v")) {
                let reply = Reply::refusal(1, error.fault, error.text);
                let read = Reply::decode(&reply.encode()).unwrap();
                assert!(read.fault == Some(Fault::NotOurs) && reply.text.starts_with(&read.text));
            }
            let plain = json!({"volumeHandle": id, "driverName": driver}).to_string();
            if plain.len() <= 4096 {
                fs::write(file, &plain).unwrap();
                assert_eq!(owner().unwrap(), Some((driver, id)));
            }
        }
        Ok(None) => panic!("the file is there"),
        Err(error) => assert!(error.fault == Fault::NotOurs && expected.is_none(), "{}", error.text),
    }
}

/// A good content that the kubelet did not put there proves nothing.
fn strange(file: &Path, rest: &[u8]) {
    let good = json!({"driverName": DRIVER, "volumeHandle": "csi-v"}).to_string();
    let (kind, rest) = input::kind(rest, 5);
    let elsewhere = world::base().join("elsewhere");
    fs::write(&elsewhere, &good).unwrap();
    let before = fs::metadata(&elsewhere).unwrap().ino();
    match kind {
        0 => symlink(&elsewhere, file).unwrap(),
        1 => rustix::fs::mknodat(rustix::fs::CWD, file, rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap(),
        2 => fs::create_dir(file).unwrap(),
        3 => drop(std::os::unix::net::UnixListener::bind(file).unwrap()),
        _ => {
            fs::write(file, &good).unwrap();
            let uid = 1 + u32::from(rest.first().copied().unwrap_or_default());
            std::os::unix::fs::chown(file, Some(uid), None).unwrap();
        }
    }
    let error = owner().expect_err("not the kubelet's");
    // A socket cannot be opened at all.
    assert!(error.fault == Fault::NotOurs || kind == 3, "{}", error.text);
    world::remove(file);
    assert_eq!(fs::metadata(&elsewhere).unwrap().ino(), before);
}
