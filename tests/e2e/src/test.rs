//! One test: a namespace of its own, and what the cluster knew when it failed.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::cluster::{MARK, apply, get, kubectl};
use crate::system::is_ready;
use crate::{Pod, SYSTEM};

/// How long a pod may take to start or to end before a test gives up. Generous: it is no measurement.
const PATIENCE: Duration = Duration::from_secs(180);

/// Waits until `probe` returns something. Errors of the probe are tried again and told at the end.
pub fn until<T>(what: &str, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    loop {
        let outcome = probe();
        if let Ok(Some(value)) = outcome {
            return Ok(value);
        }
        if started.elapsed() > PATIENCE {
            outcome.with_context(|| format!("waited {PATIENCE:?} for {what}"))?;
            bail!("waited {PATIENCE:?} in vain for {what}");
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// A running test.
pub struct Test {
    /// Its namespace, which enforces the Pod Security level `restricted`.
    pub namespace: String,
}

impl Test {
    /// Runs a test in a namespace of its own; skips it without a cluster. The name becomes the namespace's.
    ///
    /// # Panics
    /// If the test fails; before that it prints what the cluster knows.
    #[allow(clippy::panic, reason = "this is how a test fails")]
    pub fn run(name: &str, body: impl FnOnce(&Self) -> Result<()>) {
        if std::env::var_os(MARK).is_none() {
            return seamount_testkit::skip(name, "no cluster; `make e2e` starts one");
        }
        let namespace: String = name.replace('_', "-").chars().take(63).collect();
        let test = Self { namespace: namespace.trim_end_matches('-').to_owned() };
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            test.start()?;
            body(&test)
        }));
        if !matches!(outcome, Ok(Ok(()))) {
            test.dump();
        }
        let gone = test.delete_namespace();
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => panic!("{name}: {error:#}"),
            Err(panic) => resume_unwind(panic),
        }
        if let Err(error) = gone {
            panic!("{name}: {error:#}");
        }
    }

    fn start(&self) -> Result<()> {
        apply(&json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": self.namespace, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        }))?;
        until("the service account default", || {
            kubectl(&["get", "serviceaccount", "default", "-n", &self.namespace]).map(Some)
        })?;
        Ok(())
    }

    /// The pods have to end, whatever they were up to; the namespace may take its time.
    fn delete_namespace(&self) -> Result<()> {
        kubectl(&["delete", "pods", "--all", "-n", &self.namespace, "--timeout=180s"])?;
        kubectl(&["delete", "namespace", &self.namespace, "--wait=false"])?;
        Ok(())
    }

    /// Makes a service account.
    pub fn account(&self, name: &str) -> Result<()> {
        apply(&json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": name, "namespace": self.namespace},
        }))
    }

    /// Makes a pod and does not wait.
    pub fn create(&self, pod: &Pod) -> Result<()> {
        apply(&pod.object(&self.namespace))
    }

    /// Makes a pod and waits until it is ready; returns the object.
    pub fn start_pod(&self, pod: &Pod) -> Result<Value> {
        self.create(pod)?;
        until(&format!("pod {} to be ready", pod.name()), || {
            let object = self.pod(pod.name())?;
            if object["status"]["phase"] == "Failed" {
                bail!("it has failed: {}", object["status"]);
            }
            Ok(is_ready(&object).then_some(object))
        })
    }

    /// Makes a pod, waits until all its containers have ended well, and returns what a container printed.
    pub fn output_of(&self, pod: &Pod, container: &str) -> Result<String> {
        self.create(pod)?;
        self.ended_well(pod.name(), container)
    }

    /// Waits until all containers of a pod have ended well, and returns what one of them printed.
    pub fn ended_well(&self, pod: &str, container: &str) -> Result<String> {
        let phase = until(&format!("pod {pod} to end"), || {
            let phase = text(&self.pod(pod)?["status"]["phase"]);
            Ok(["Succeeded", "Failed"].contains(&phase.as_str()).then_some(phase))
        })?;
        let logs = self.logs(pod, container)?;
        if phase != "Succeeded" {
            bail!("pod {pod} {phase}: {logs}");
        }
        Ok(logs)
    }

    /// A pod as it is now.
    pub fn pod(&self, name: &str) -> Result<Value> {
        get(&["pod", name, "-n", &self.namespace])
    }

    /// What a container printed so far.
    pub fn logs(&self, pod: &str, container: &str) -> Result<String> {
        kubectl(&["logs", pod, "-c", container, "-n", &self.namespace])
    }

    /// Runs a command in a container.
    pub fn exec(&self, pod: &str, container: &str, command: &[&str]) -> Result<String> {
        kubectl(&[&["exec", pod, "-c", container, "-n", &self.namespace, "--"], command].concat())
    }

    /// The identity that go-spiffe sees in a container, verified against its bundle.
    pub fn identity(&self, pod: &str, container: &str) -> Result<Value> {
        let out = self.exec(pod, container, &["/client", "fetch"])?;
        serde_json::from_str(&out).with_context(|| format!("the client printed {out:?}"))
    }

    /// Deletes a pod and waits until it is gone.
    pub fn delete(&self, pod: &str) -> Result<()> {
        kubectl(&["delete", "pod", pod, "-n", &self.namespace, "--timeout=120s"]).map(drop)
    }

    /// Deletes pods and does not wait.
    pub fn ask_to_end(&self, pods: &[&str]) -> Result<()> {
        let command = ["delete", "pod", "-n", &self.namespace, "--wait=false"];
        kubectl(&[&command, pods].concat()).map(drop)
    }

    /// Waits until a pod is gone from the API.
    pub fn gone(&self, pod: &str) -> Result<()> {
        kubectl(&["wait", "pod", pod, "-n", &self.namespace, "--for=delete", "--timeout=180s"]).map(drop)
    }

    /// The events of a pod as `reason: message`.
    pub fn events(&self, pod: &str) -> Result<Vec<String>> {
        let selector = format!("--field-selector=involvedObject.name={pod}");
        let list = get(&["events", "-n", &self.namespace, &selector])?;
        let events = list["items"].as_array().into_iter().flatten();
        Ok(events.map(|e| format!("{}: {}", text(&e["reason"]), text(&e["message"]))).collect())
    }

    /// Waits for the event that says why a pod's volume was refused, and makes sure that the pod has not
    /// started.
    pub fn refused(&self, pod: &str, words: &[&str]) -> Result<String> {
        let event = until(&format!("an event of {pod} with {words:?}"), || {
            let events = self.events(pod)?;
            let found =
                events.iter().find(|e| e.starts_with("FailedMount") && words.iter().all(|w| e.contains(w)));
            match found {
                Some(event) => Ok(Some(event.clone())),
                None => bail!("the events are {events:#?}"),
            }
        })?;
        let phase = text(&self.pod(pod)?["status"]["phase"]);
        if phase != "Pending" {
            bail!("pod {pod} is {phase}, although its volume was refused: {event}");
        }
        Ok(event)
    }

    fn dump(&self) {
        let commands: [&[&str]; 6] = [
            // Whether a node is short of something, or not there, and what runs on it.
            &["describe", "nodes"],
            &["get", "pods", "-A", "-o", "wide"],
            &["describe", "pods", "-n", &self.namespace],
            &["get", "events", "-n", &self.namespace],
            &[
                "logs",
                "-n",
                SYSTEM,
                "-l",
                "app.kubernetes.io/name=seamount",
                "--all-containers",
                "--prefix",
                "--tail=60",
            ],
            &["logs", "-n", SYSTEM, "daemonset/seamount-node", "--all-containers", "--prefix", "--tail=60"],
        ];
        for command in commands {
            println!("--- kubectl {}", command.join(" "));
            match kubectl(command) {
                Ok(text) => println!("{text}"),
                Err(error) => println!("{error:#}"),
            }
        }
    }
}

/// A JSON string, or nothing.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
