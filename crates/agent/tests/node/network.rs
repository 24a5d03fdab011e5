//! Metrics on networks that have one of the two address families alone.

use std::process::Command;

use rustix::thread::UnshareFlags;
use seamount_testkit::node::get;

use crate::harness::{LONG, RUN, on_node};

fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn metrics_are_served_whatever_the_network_speaks() {
    const NAME: &str = "metrics_are_served_whatever_the_network_speaks";
    if Command::new("ip").arg("-V").output().is_err() {
        return seamount_testkit::skip(NAME, "needs ip (iproute2)");
    }
    for (missing, left) in [("-4 addr flush dev lo", "[::1]"), ("-6 addr flush dev lo", "127.0.0.1")] {
        on_node(NAME, async |node| {
            // This thread, and what it starts.
            seamount_sys::play::unshare(UnshareFlags::NEWNET).unwrap();
            ip("link set lo up");
            ip(missing);
            node.start_mounter();
            node.agent = Some(node.second_agent(RUN, "[::]:9808").start().unwrap());
            node.agent().wait_for_log(LONG, "address=[::]:9808").unwrap();
            let (code, text) = get(&format!("{left}:9808"), "/metrics").await.unwrap();
            assert!(code == 200 && text.ends_with("# EOF\n"), "{text}");
            // Its reasons are no client's of the network.
            for path in ["/readyz", "/livez"] {
                assert_eq!(get(&format!("{left}:9808"), path).await.unwrap().0, 404, "{path}");
            }
            assert_eq!(node.get("/livez").await.unwrap().0, 200);
        });
    }
}
