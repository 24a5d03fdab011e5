use std::collections::BTreeMap;
use std::io::Read;

use serde_json::{Value, json};

use super::*;

fn example() -> Image {
    let mut layer = Layer::new();
    layer.directory("/tmp", 0o1777).unwrap();
    layer.file("/bin/deep/tool", 0o755, b"tool").unwrap();
    layer.link("/bin/sh", "deep/tool").unwrap();
    Image {
        name: full_name("seamount:dev"),
        entry: vec!["/bin/sh".into()],
        cmd: vec!["-c".into(), "true".into()],
        env: vec!["A=b".into()],
        user: "64203".into(),
        layer: layer.finish().unwrap(),
    }
}

fn entries(tar: &[u8]) -> BTreeMap<String, (tar::Header, Vec<u8>)> {
    let mut archive = tar::Archive::new(tar);
    archive
        .entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), (entry.header().clone(), content))
        })
        .collect()
}

fn json_of(files: &BTreeMap<String, (tar::Header, Vec<u8>)>, descriptor: &Value) -> Value {
    let content = blob_of(files, descriptor);
    serde_json::from_slice(&content).unwrap()
}

fn blob_of(files: &BTreeMap<String, (tar::Header, Vec<u8>)>, descriptor: &Value) -> Vec<u8> {
    let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let content = files[&format!("blobs/sha256/{digest}")].1.clone();
    assert_eq!(sha256(&content), digest);
    assert_eq!(descriptor["size"], content.len());
    content
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    // More than twice: the library's maps are ordered by chance.
    let first = example().archive().unwrap();
    for _ in 0..8 {
        assert!(example().archive().unwrap() == first);
    }
}

#[test]
fn every_digest_and_size_fits_its_content() {
    let files = entries(&example().archive().unwrap());
    let index: Value = serde_json::from_slice(&files["index.json"].1).unwrap();
    let descriptor = &index["manifests"][0];
    assert_eq!(descriptor["annotations"]["io.containerd.image.name"], "docker.io/library/seamount:dev");
    assert_eq!(descriptor["platform"]["os"], "linux");
    let manifest = json_of(&files, descriptor);
    let config = json_of(&files, &manifest["config"]);
    assert_eq!(config["config"]["Entrypoint"], json!(["/bin/sh"]));
    assert_eq!(config["config"]["Cmd"], json!(["-c", "true"]));
    assert_eq!(config["config"]["User"], "64203");
    assert!(config["config"]["Env"].as_array().unwrap().contains(&json!("A=b")));

    let mut layer = Vec::new();
    flate2::read::GzDecoder::new(&blob_of(&files, &manifest["layers"][0])[..])
        .read_to_end(&mut layer)
        .unwrap();
    assert_eq!(config["rootfs"]["diff_ids"], json!([format!("sha256:{}", sha256(&layer))]));
    assert!(layer == example().layer);
}

#[test]
fn files_have_their_modes_and_the_directories_above_them() {
    let files = entries(&example().layer);
    let mode = |path: &str| files[path].0.mode().unwrap();
    assert_eq!(files.keys().collect::<Vec<_>>(), ["bin/", "bin/deep/", "bin/deep/tool", "bin/sh", "tmp/"]);
    assert_eq!((mode("tmp/"), mode("bin/deep/tool"), mode("bin/")), (0o1777, 0o755, 0o755));
    assert_eq!(files["bin/deep/tool"].1, b"tool");
    assert_eq!(files["bin/sh"].0.link_name().unwrap().unwrap().to_str(), Some("deep/tool"));
    for (header, _) in files.values() {
        assert_eq!((header.mtime().unwrap(), header.uid().unwrap(), header.gid().unwrap()), (0, 0, 0));
    }
}

#[test]
fn names_are_completed_as_the_kubelet_looks_them_up() {
    for (name, full) in [
        ("seamount:dev", "docker.io/library/seamount:dev"),
        ("seamount", "docker.io/library/seamount:latest"),
        ("someone/seamount:1", "docker.io/someone/seamount:1"),
        ("test.local/pause:1", "test.local/pause:1"),
        ("localhost/x", "localhost/x:latest"),
        ("registry:5000/x", "registry:5000/x:latest"),
    ] {
        assert_eq!(full_name(name), full);
    }
}
