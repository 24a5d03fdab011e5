//! The load generator against a real driver that it knows by a socket and a file alone: a node of the source
//! `directory`, with the parameters that are committed for the SPIFFE CSI driver.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use seamount_testkit::issuer::TokenIssuer;
use seamount_testkit::node::{DRIVER, ISSUER, Node, RUN};
use seamount_testkit::{is_root, namespace, skip};

const LONG: Duration = Duration::from_secs(60);
const PARAMETERS: &str = include_str!("../../../bench/spiffe-csi.json");

#[test]
fn a_driver_is_measured_by_its_socket_and_a_file() {
    let name = "a_driver_is_measured_by_its_socket_and_a_file";
    if !is_root() {
        return skip(name, "needs root for a mount namespace");
    }
    namespace::private_mounts(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(measured());
    });
}

async fn measured() {
    let node = Node::new(TokenIssuer::new(ISSUER)).unwrap();
    let source = node.path("spire");
    std::fs::create_dir(&source).unwrap();
    let root = node.kubelet.root().to_owned();
    node.configure(&format!(
        "identity: {{source: directory}}\nkubeletRoot: {}\nnodeName: node-1\nmounterSocket: {}\nhttp: {{address: \"{}\"}}\n",
        root.display(),
        node.path(RUN).join("mounter.sock").display(),
        node.http
    ))
    .unwrap();
    let _mounter =
        node.mounter(RUN).args(["--source-directory".as_ref(), source.as_os_str()]).start().unwrap();
    let _agent = node.agent(RUN, &node.http).start().unwrap();
    node.kubelet.register(LONG).await.unwrap();
    node.ready(LONG).await.unwrap();

    let parameters = node.path("parameters.json");
    std::fs::write(&parameters, PARAMETERS.replace("/var/lib/kubelet", root.to_str().unwrap())).unwrap();
    let endpoint = root.join("plugins").join(DRIVER).join("csi.sock");
    let load = |endpoint: &Path| {
        let mut bench = Command::new(env!("CARGO_BIN_EXE_seamount-bench"));
        bench.args(["csi", "--concurrency", "1,3", "--volumes", "6", "--hold", "2", "--runs", "2"]);
        bench.arg("--endpoint").arg(endpoint).arg("--parameters").arg(&parameters).output().unwrap()
    };
    let output = load(&endpoint);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for wanted in ["c=1, 2 held: publish p50", "c=3, 2 held: unpublish p99"] {
        assert!(text.contains(wanted), "no {wanted:?} in {text}");
    }
    let pods = std::fs::read_dir(root.join("pods")).unwrap().count();
    assert_eq!(pods, 0, "volumes or directories are left");
    // A driver that does not answer is an error with its name, not a row.
    let away = load(&root.join("nobody.sock"));
    assert!(!away.status.success() && String::from_utf8_lossy(&away.stderr).contains("nobody.sock"));
}
