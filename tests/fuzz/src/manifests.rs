//! The manifests of `seamount play`: what is played is complete and stays in its place, and no message tells
//! a Secret.

use std::collections::BTreeSet;

use crate::play::manifest::{Container, Place, Pod, Source, load, needs_other_ids};

/// In a Secret beside the text; must not come out in a message.
const HIDDEN: &str = "hunter2-correct-horse";

/// A text of manifests.
pub fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let others = format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: keys, namespace: ns}}\nstringData: {{key: {HIDDEN}}}\n---\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings, namespace: ns}}\ndata: {{a: b}}\n"
    );
    let uid = || "00000000-0000-4000-8000-000000000001".to_owned();
    let place = Place { driver: "csi.spiffe.io", node: "node-1", uid: &uid };
    let files = [("mine.yaml".to_owned(), text.to_owned()), ("others.yaml".to_owned(), others)];
    let tells = |message: &str| message.contains(HIDDEN) && !text.contains("hunter2");
    match load(&files, &place) {
        Ok(plan) => {
            let names: BTreeSet<String> = plan.pods.iter().map(Pod::full_name).collect();
            assert!(!names.is_empty() && names.len() == plan.pods.len());
            assert!(!plan.notes.iter().any(|note| tells(note)));
            plan.pods.iter().for_each(pod);
            assert!(needs_other_ids(&plan, 0).len() >= needs_other_ids(&plan, 65_535).len());
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            for error in errors {
                let message = error.to_string();
                assert!(!message.is_empty() && !tells(&message), "{message}");
            }
        }
    }
}

fn pod(pod: &Pod) {
    assert!(!pod.name.is_empty() && !pod.namespace.is_empty() && !pod.service_account.is_empty());
    assert!(!pod.name.contains('/') && !pod.namespace.contains('/'), "{}", pod.full_name());
    assert_eq!(pod.uid, "00000000-0000-4000-8000-000000000001");
    let volumes: BTreeSet<&str> = pod.volumes.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(volumes.len(), pod.volumes.len(), "two volumes of one name");
    for volume in &pod.volumes {
        assert!(!volume.name.is_empty() && !volume.name.contains(['/', '.']), "{:?}", volume.name);
        if let Source::Files(files) = &volume.source {
            for file in files {
                below(&file.path);
                assert!(file.mode <= 0o777, "{:o}", file.mode);
            }
        }
    }
    assert!(!pod.containers.is_empty());
    let all: Vec<&Container> = pod.init.iter().chain(&pod.containers).collect();
    let names: BTreeSet<&str> = all.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names.len(), all.len(), "two containers of one name");
    for container in all {
        assert!(!container.command.is_empty());
        // What execve(2) and the kernel could not take.
        let nul = container.command.iter().any(|word| word.contains('\0'));
        let env =
            container.env.iter().any(|(k, v)| k.is_empty() || k.contains(['=', '\0']) || v.contains('\0'));
        assert!(!nul && !env);
        assert!(!container.directory.contains('\0'));
        let mut paths = BTreeSet::new();
        for mount in &container.mounts {
            assert!(volumes.contains(mount.volume.as_str()));
            assert!(mount.path.starts_with('/') && mount.path != "/", "{:?}", mount.path);
            below(&mount.path[1..]);
            mount.sub_path.as_deref().map(below);
            assert!(paths.insert(&mount.path), "two mounts at {:?}", mount.path);
        }
    }
}

/// A relative path that leads nowhere else.
fn below(path: &str) {
    assert!(!path.is_empty() && !path.contains('\0'));
    assert!(path.split('/').all(|part| !matches!(part, "" | "." | "..")), "{path:?}");
}
