//! When the process runs out of descriptors, accepting pauses instead of spinning or ending, and goes on as
//! soon as there are some. Alone in its process, because it uses all of them up.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    dead_code,
    reason = "a test may panic, and uses only a part of what it shares with the others"
)]

use std::{fs::File, time::Duration};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[path = "workload_api/raw.rs"]
mod raw;
#[path = "workload_api/support.rs"]
mod support;

use raw::{call, preface, write};
use support::*;

#[tokio::test]
async fn accepting_waits_for_descriptors() {
    let server = Server::start(ready(&svid("a")));
    let limit = Rlimit { current: Some(64), ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, limit).unwrap();
    let mut fill = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        fill.push(file);
    }
    // One for the client; the server's end finds none.
    fill.pop();
    let client = write(&server, &[preface(None), call(1)].concat()).await;
    until("an accept that failed", || server.seen.refused("accept") >= 2).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(server.seen.refused("accept") < 20, "it pauses: {}", server.seen.refused("accept"));
    assert_eq!(server.seen.connections(), 0);
    assert!(!server.task.is_finished());

    drop(fill);
    until("served", || server.seen.streams() == 1).await;
    drop(client);
    until("closed", || server.seen.connections() == 0).await;
}
