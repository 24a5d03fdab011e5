//! Attempts to make the mounter touch something outside the volume.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::mount::{UnmountFlags, mount_bind};
use seamount_mounter_protocol::names::Volume;
use seamount_mounter_protocol::{Fault, Request};

use crate::bench::{Agent, Bench, POD, bench, mount_points, names};

/// A complete pod's directory outside the kubelet's, which nothing may change.
struct Outside {
    root: PathBuf,
    before: Vec<String>,
}

impl Outside {
    fn new(bench: &Bench) -> Self {
        let root = bench.path("outside");
        let place = root.join("volumes/kubernetes.io~csi/v");
        fs::create_dir_all(place.join("mount")).unwrap();
        fs::copy(bench.place(&bench.volume("v")).join("vol_data.json"), place.join("vol_data.json")).unwrap();
        fs::write(place.join("mount/precious"), "x").unwrap();
        let before = tree(&root);
        Self { root, before }
    }

    #[track_caller]
    fn check(&self) {
        assert_eq!(tree(&self.root), self.before);
        assert!(!mount_points().iter().any(|p| p.starts_with(&self.root)));
    }
}

/// Every path below, with inode and owner.
fn tree(root: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for name in names(root) {
        let path = root.join(name);
        let stat = fs::symlink_metadata(&path).unwrap();
        all.push(format!("{} {} {} {:o}", path.display(), stat.ino(), stat.uid(), stat.mode()));
        if stat.is_dir() {
            all.extend(tree(&path));
        }
    }
    all
}

/// Without the slash at the end that `join` makes of an empty component.
fn beneath(pod: &Path, component: &str) -> PathBuf {
    if component.is_empty() { pod.to_owned() } else { pod.join(component) }
}

/// Everything that can be asked for a volume.
fn requests(volume: &Volume) -> Vec<Request> {
    vec![
        Request::PublishIdentity(volume.clone()),
        Request::PublishTmpfs { volume: volume.clone(), gid: 7, size: 4096 },
        Request::PublishDirectory(volume.clone()),
        Request::SetOwnership { volume: volume.clone(), version: "precious".into() },
        Request::Inspect(volume.clone()),
        Request::Unpublish(volume.clone()),
    ]
}

fn start(bench: &mut Bench) -> Agent {
    let source = bench.path("source");
    bench.start(&["--source-directory", source.to_str().unwrap()]);
    bench.agent()
}

/// The components of a target path, from the pod's directory on.
const COMPONENTS: [&str; 5] = [
    "",
    "volumes",
    "volumes/kubernetes.io~csi",
    "volumes/kubernetes.io~csi/v",
    "volumes/kubernetes.io~csi/v/mount",
];

#[test]
fn no_symlink_is_followed_at_any_component() {
    bench("no_symlink_is_followed_at_any_component", |bench| {
        let outside = Outside::new(bench);
        let agent = start(bench);
        let volume = bench.volume("v");
        let pod = bench.path("pods").join(POD);
        for component in COMPONENTS {
            let here = beneath(&pod, component);
            let there = beneath(&outside.root, component);
            let relative = format!("{}/outside/{component}", "../".repeat(component.split('/').count() + 5));
            let magic = format!("/proc/self/root{}", there.display());
            for link in [there.to_str().unwrap(), &relative, &magic, "/proc/self/cwd"] {
                let aside = bench.path("aside");
                if here.exists() {
                    fs::rename(&here, &aside).unwrap();
                }
                symlink(link, &here).unwrap();
                for request in requests(&volume) {
                    let answer = agent.ask(&request);
                    let last = component.ends_with("mount");
                    match request {
                        // The link itself is a leftover of a volume of ours; what it leads to is not.
                        Request::Unpublish(_) if last => assert!(answer.fault().is_none()),
                        Request::Inspect(_) if last => assert!(answer.fault().is_none()),
                        _ => assert!(answer.fault().is_some(), "{request:?} through {component} -> {link}"),
                    }
                    outside.check();
                }
                assert!(agent.list().len() <= 1);
                let _ = fs::remove_file(&here);
                if aside.exists() {
                    fs::rename(&aside, &here).unwrap();
                }
            }
        }
    });
}

#[test]
fn no_mount_is_crossed_before_the_last_component() {
    bench("no_mount_is_crossed_before_the_last_component", |bench| {
        let outside = Outside::new(bench);
        let agent = start(bench);
        let volume = bench.volume("v");
        let pod = bench.path("pods").join(POD);
        for component in &COMPONENTS[..4] {
            let here = beneath(&pod, component);
            mount_bind(outside.root.join(component), &here).unwrap();
            for request in requests(&volume) {
                assert!(agent.ask(&request).fault().is_some(), "{request:?} through {component}");
            }
            assert!(agent.list().is_empty());
            rustix::mount::unmount(&here, UnmountFlags::empty()).unwrap();
            outside.check();
        }
        // A record that is mounted there is not the kubelet's.
        let record = bench.place(&volume).join("vol_data.json");
        mount_bind(outside.root.join("volumes/kubernetes.io~csi/v/vol_data.json"), &record).unwrap();
        agent.identity(&volume).bad(Fault::NotOurs, "nothing is touched");
    });
}

#[test]
fn a_record_that_the_kubelet_did_not_write_is_not_believed() {
    bench("a_record_that_the_kubelet_did_not_write_is_not_believed", |bench| {
        let agent = start(bench);
        let volume = bench.volume("v");
        let record = bench.place(&volume).join("vol_data.json");
        let good = fs::read_to_string(&record).unwrap();
        let refused = |what: &str| {
            for request in requests(&volume) {
                let answer = agent.ask(&request);
                assert_eq!(answer.fault(), Some(Fault::NotOurs), "{what}: {request:?}");
            }
            assert!(agent.list().is_empty(), "{what}");
            assert!(!bench.target(&volume).exists(), "{what}");
            fs::remove_file(&record).or_else(|_| fs::remove_dir(&record)).unwrap();
        };
        for text in [
            "",
            "{",
            "[]",
            "null",
            "\"csi.spiffe.io\"",
            r#"{"driverName":"csi.spiffe.io"}"#,
            r#"{"driverName":["csi.spiffe.io"],"volumeHandle":"csi-v"}"#,
        ] {
            fs::write(&record, text).unwrap();
            refused(text);
        }
        fs::write(&record, good.clone() + &" ".repeat(5000)).unwrap();
        refused("huge");
        fs::write(&record, &good).unwrap();
        std::os::unix::fs::chown(&record, Some(1000), None).unwrap();
        refused("of another owner");
        fs::write(bench.path("record"), &good).unwrap();
        symlink(bench.path("record"), &record).unwrap();
        refused("symlink");
        fs::create_dir(&record).unwrap();
        refused("directory");
        // A FIFO without a writer would block an ordinary open for ever.
        rustix::fs::mknodat(
            CWD,
            &record,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o644),
            0,
        )
        .unwrap();
        refused("fifo");
        let deep = "[".repeat(4000);
        fs::write(&record, deep).unwrap();
        refused("deeply nested");
        fs::write(&record, good).unwrap();
        agent.identity(&volume).good();
    });
}

#[test]
fn over_long_paths_are_served_and_never_cut() {
    bench("over_long_paths_are_served_and_never_cut", |bench| {
        let agent = start(bench);
        // Longer than sun_path by far.
        let volume = bench.volume(&"v".repeat(63));
        agent.identity(&volume).good();
        assert!(bench.target(&volume).as_os_str().len() > 108);
        agent.unpublish(&volume).good();
        assert!(!bench.target(&volume).exists());
    });
}

#[test]
fn swapping_a_component_while_requests_run_gains_nothing() {
    bench("swapping_a_component_while_requests_run_gains_nothing", |bench| {
        let outside = Outside::new(bench);
        let agent = start(bench);
        let volume = bench.volume("v");
        fs::create_dir(bench.target(&volume)).unwrap();
        let pod = bench.path("pods").join(POD);
        for component in COMPONENTS {
            let here = beneath(&pod, component);
            let decoy = bench.path("decoy");
            symlink(beneath(&outside.root, component), &decoy).unwrap();
            let stop = AtomicBool::new(false);
            let swaps = AtomicU64::new(0);
            std::thread::scope(|scope| {
                let _stop = Stop(&stop);
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let swapped = renameat_with(CWD, &here, CWD, &decoy, RenameFlags::EXCHANGE);
                        swaps.fetch_add(swapped.is_ok().into(), Ordering::Relaxed);
                        // The last component is the mounter's: it removes the link as a leftover, and mounts
                        // on the directory that has the decoy's name by then. Then another link is needed.
                        if !decoy.is_symlink() && !here.is_symlink() {
                            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
                            while rustix::mount::unmount(&decoy, flags).is_ok() {}
                            let _ = fs::remove_dir_all(&decoy);
                            let _ = symlink(beneath(&outside.root, component), &decoy);
                        }
                    }
                });
                // A mount point cannot be exchanged (EBUSY), and the last component is one now and then:
                // 1,000 rounds have seen 41 swaps there, and 100,000 elsewhere. So it goes on until there
                // were enough.
                for round in 0.. {
                    if round >= 1000 && swaps.load(Ordering::Relaxed) > 100 {
                        break;
                    }
                    assert!(round < 100_000, "{component}: it is never exchanged");
                    for request in requests(&volume) {
                        agent.ask(&request);
                    }
                    agent.ask(&Request::List { cursor: 0 });
                    outside_quick(&outside);
                }
            });
            outside.check();
            // Whichever of the two is here now: the link goes, the directory stays.
            for path in [&here, &decoy] {
                // A mount is made on the directory that was found, whatever it is called by then.
                while rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
                if path.is_symlink() {
                    fs::remove_file(path).unwrap();
                }
            }
            if !here.exists() && decoy.exists() {
                fs::rename(&decoy, &here).unwrap();
            }
            let _ = agent.unpublish(&volume);
            fs::create_dir_all(bench.target(&volume)).unwrap();
        }
    });
}

/// Ends the swapping also when the test fails; else the scope would wait for it for ever.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[track_caller]
fn outside_quick(outside: &Outside) {
    assert_eq!(names(outside.root.join("volumes/kubernetes.io~csi/v/mount")), ["precious"]);
}
