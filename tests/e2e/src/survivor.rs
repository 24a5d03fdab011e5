//! Pods that live through a fault: their identity must stay, in the same place.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::system::statuses;
use crate::test::text;
use crate::{CLIENTS, MOUNT, Pod, Test, node, until};

/// A running pod: the container `main` sleeps, `watch` keeps a FetchX509SVID stream open (go-spiffe, which
/// comes back by itself), and `probe` connects anew all the time.
pub struct Survivor {
    /// The pod's name.
    pub name: String,
    node: String,
    pod: Value,
    identity: Value,
    directory: String,
}

impl Survivor {
    /// Starts pods of these names on a node.
    pub fn start(test: &Test, node: &str, names: &[&str]) -> Result<Vec<Self>> {
        let pods: Vec<_> = names.iter().map(|name| pod(name, node)).collect();
        pods.iter().try_for_each(|pod| test.create(pod))?;
        pods.iter().map(|pod| Self::of(test, node, test.start_pod(pod)?)).collect()
    }

    fn of(test: &Test, node: &str, pod: Value) -> Result<Self> {
        let name = text(&pod["metadata"]["name"]);
        let identity = test.identity(&name, "main")?;
        let mut survivor = Self { name, node: node.to_owned(), pod, identity, directory: String::new() };
        survivor.directory = survivor.directory_now()?;
        until("the first message of the stream", || Ok((survivor.updates(test)? > 0).then_some(())))?;
        Ok(survivor)
    }

    /// Device and inode of the volume's directory.
    fn directory_now(&self) -> Result<String> {
        let volume = node::volume_path(&text(&self.pod["metadata"]["uid"]));
        node::run(&self.node, &["stat", "-c", "%F %d:%i", &volume])
    }

    /// How many messages its open stream has brought; each is checked to have the same serial.
    pub fn updates(&self, test: &Test) -> Result<usize> {
        let log = test.logs(&self.name, "watch")?;
        let mut seen = 0;
        for line in log.lines().filter(|l| l.starts_with('{')) {
            let update: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            self.is_same(&update)?;
            seen += 1;
        }
        Ok(seen)
    }

    /// Waits until the stream has brought more messages than `before`: it was broken and is there again.
    pub fn reconnected(&self, test: &Test, before: usize) -> Result<()> {
        until(&format!("the stream of {} to be there again", self.name), || {
            Ok((self.updates(test)? > before).then_some(()))
        })
    }

    /// Fails if the stream was ever broken.
    pub fn never_broken(&self, test: &Test) -> Result<()> {
        let log = test.logs(&self.name, "watch")?;
        ensure!(log.lines().count() == 1, "the stream of {} was broken: {log}", self.name);
        Ok(())
    }

    fn is_same(&self, now: &Value) -> Result<()> {
        let Self { name, identity, .. } = self;
        ensure!(now["id"] == identity["id"], "{name} is {now}, was {identity}");
        ensure!(now["serial"] == identity["serial"], "another serial: {name} is {now}, was {identity}");
        Ok(())
    }

    /// Waits until a new connection from its container is answered; its SVID and its directory are those of
    /// before, and none of its containers was restarted.
    pub fn check(&self, test: &Test) -> Result<()> {
        let identity =
            until(&format!("an answer to {}", self.name), || test.identity(&self.name, "main").map(Some))?;
        self.is_same(&identity)?;
        self.same_directory()?;
        let ids =
            |pod: &Value| -> Vec<Value> { statuses(pod).iter().map(|s| s["containerID"].clone()).collect() };
        let now = test.pod(&self.name)?;
        ensure!(ids(&now) == ids(&self.pod), "containers of {} were restarted: {}", self.name, now["status"]);
        Ok(())
    }

    /// The same by the node's own means: kubelet, containerd and API server may be away.
    pub fn check_on_node(&self) -> Result<()> {
        self.is_same(&self.identity_on_node()?)?;
        self.same_directory()
    }

    /// The identity that it has now, by the node's own means, waited for.
    pub fn identity_on_node(&self) -> Result<Value> {
        let pid = self.pid()?;
        until(&format!("an answer to {} on its node", self.name), || {
            let out = node::in_container(&self.node, pid, &["/client", "fetch"])?;
            serde_json::from_str(&out).map(Some).with_context(|| out)
        })
    }

    fn pid(&self) -> Result<u32> {
        let id = statuses(&self.pod).iter().find(|s| s["name"] == "main").map(|s| text(&s["containerID"]));
        let id = id.context("no status of main")?;
        node::pid_of_container(&self.node, id.trim_start_matches("containerd://"))
    }

    /// The volume's directory is that of the start.
    pub fn same_directory(&self) -> Result<()> {
        let now = self.directory_now()?;
        ensure!(now == self.directory, "the directory of {} is {now}, was {}", self.name, self.directory);
        Ok(())
    }

    /// The SPIFFE ID.
    pub fn id(&self) -> &Value {
        &self.identity["id"]
    }

    /// The serial number.
    pub fn serial(&self) -> &Value {
        &self.identity["serial"]
    }

    /// The pod's UID.
    pub fn uid(&self) -> String {
        text(&self.pod["metadata"]["uid"])
    }

    /// The longest time, in seconds, in which no new connection was answered, and what clients were told
    /// meanwhile.
    pub fn gap(&self, test: &Test) -> Result<(f64, String)> {
        let log = test.logs(&self.name, "probe")?;
        let lines = log.lines().map(|l| serde_json::from_str::<Value>(l).with_context(|| l.to_owned()));
        let mut longest = (0.0, String::new());
        for line in lines {
            let line = line?;
            let gap = line["gap"].as_f64().unwrap_or_default();
            if gap > longest.0 {
                longest = (gap, text(&line["error"]));
            }
        }
        Ok(longest)
    }
}

fn pod(name: &str, node: &str) -> Pod {
    Pod::new(name)
        .on(node)
        // A node that was off starts the containers again.
        .spec("restartPolicy", json!("Always"))
        .sleeping()
        .container("watch", CLIENTS, &["/client", "watch", "1000000"])
        .container("probe", CLIENTS, &["/client", "probe"])
}

/// A pod that ends well as soon as it has seen its identity, however long that takes. It tries a publish, not
/// a fetch.
pub fn passing(name: &str, node: &str) -> Pod {
    Pod::new(name).on(node).container("main", CLIENTS, &["/client", "watch", "1"])
}

/// Where the client inside a container finds the socket.
pub fn endpoint() -> String {
    format!("SPIFFE_ENDPOINT_SOCKET=unix://{MOUNT}/spire-agent.sock")
}
