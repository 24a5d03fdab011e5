use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use super::*;
use crate::record::tests::{example, node_record};
use crate::record::{Body, Registration};

const A: &str = "3f2c1a9e-0b1d-4c5e-8f70-a1b2c3d4e5f6";
const B: &str = "4f2c1a9e-0b1d-4c5e-8f70-a1b2c3d4e5f6";

fn open() -> (tempfile::TempDir, StateDir) {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::new(fs::File::open(dir.path()).unwrap().into());
    (dir, state)
}

fn get(state: &StateDir, pod: &str, name: &str) -> Result<Option<Record>, StateError> {
    state.get(&pod.parse().unwrap(), &name.parse().unwrap())
}

#[test]
fn what_is_put_is_got_listed_and_removed() {
    let (dir, state) = open();
    assert!(get(&state, A, "v").unwrap().is_none());
    for (pod, name) in [(B, "v"), (A, "w"), (A, "v")] {
        state.put(&example(pod, name)).unwrap();
    }
    assert!(get(&state, A, "v").unwrap().is_some_and(|r| r == example(A, "v")));
    let names: Vec<_> = state.list().unwrap().into_iter().map(|f| (f.name, f.record.is_ok())).collect();
    assert_eq!(names, [(format!("{A}.v"), true), (format!("{A}.w"), true), (format!("{B}.v"), true)]);
    // The same again: a directory is read from its start each time.
    assert_eq!(state.list().unwrap().len(), 3);
    let mode = fs::metadata(dir.path().join(format!("{A}.v"))).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    state.remove(&example(A, "v").volume).unwrap();
    state.remove(&example(A, "v").volume).unwrap();
    assert!(get(&state, A, "v").unwrap().is_none());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn a_record_is_replaced_as_a_whole() {
    let (dir, state) = open();
    state.put(&example(A, "v")).unwrap();
    let path = dir.path().join(format!("{A}.v"));
    let (old, first) = (fs::File::open(&path).unwrap(), fs::metadata(&path).unwrap().ino());
    let changed = Record { body: Body::Directory, ..example(A, "v") };
    state.put(&changed).unwrap();
    assert!(get(&state, A, "v").unwrap().is_some_and(|r| r == changed));
    // A reader that had it open still has the whole old one.
    assert_eq!(old.metadata().unwrap().ino(), first);
    assert_ne!(fs::metadata(&path).unwrap().ino(), first);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn the_nodes_record_is_beside_the_volumes() {
    let (_dir, state) = open();
    assert_eq!(state.get_node().unwrap(), None);
    let node = node_record(Registration::Registered);
    state.put_node(&node).unwrap();
    assert_eq!(state.get_node().unwrap(), Some(node));
    assert!(state.list().unwrap().is_empty());
}

#[test]
fn damaged_and_foreign_files_are_reported_and_kept() {
    let (dir, state) = open();
    let path = |name: &str| dir.path().join(name);
    state.put(&example(A, "good")).unwrap();
    fs::write(path(&format!("{A}.damaged")), b"garbage").unwrap();
    let mut long = fs::File::create(path(&format!("{A}.long"))).unwrap();
    io::copy(&mut io::repeat(0).take(MAX_RECORD as u64 + 1), &mut long).unwrap();
    fs::copy(path(&format!("{A}.good")), path(&format!("{B}.good"))).unwrap();
    symlink(path(&format!("{A}.good")), path(&format!("{A}.link"))).unwrap();
    let mut errors: Vec<_> =
        state.list().unwrap().into_iter().filter_map(|f| f.record.err().map(|e| e.to_string())).collect();
    errors.sort();
    assert_eq!(errors.len(), 4, "{errors:#?}");
    for (error, says) in errors.iter().zip(["damaged", "cannot open", "more than", "holds the record of"]) {
        assert!(error.contains(says), "{error}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 5);
}

#[test]
fn what_a_crash_left_half_written_is_removed() {
    let (dir, state) = open();
    fs::write(dir.path().join(".new-1-0"), b"half").unwrap();
    assert!(state.list().unwrap().is_empty());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// The agent reads the records on another thread when it starts, and the kubelet does not wait for that.
#[test]
fn what_is_being_written_is_left_alone() {
    let (dir, state) = open();
    let done = std::sync::atomic::AtomicBool::new(false);
    let put = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                state.list().unwrap();
            }
        });
        let put: Result<Vec<()>, StateError> = (0..5000).map(|_| state.put(&example(A, "v"))).collect();
        done.store(true, Ordering::Relaxed);
        put
    });
    put.unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_full_tmpfs_is_named_and_changes_nothing() {
    if !seamount_testkit::is_root() {
        seamount_testkit::skip("a_full_tmpfs_is_named_and_changes_nothing", "needs root to mount a tmpfs");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    seamount_testkit::namespace::private_mounts(|| {
        let data = c"size=16k,nr_inodes=16";
        rustix::mount::mount("tmpfs", dir.path(), "tmpfs", rustix::mount::MountFlags::empty(), Some(data))
            .unwrap();
        let state = StateDir::new(fs::File::open(dir.path()).unwrap().into());
        state.put(&example(A, "v")).unwrap();
        let mut large = example(A, "v");
        let mut identity = large.identity().unwrap().clone();
        identity.svid.as_mut().unwrap().chain = vec![1; 100 * 1024];
        large.body = Body::Identity(identity);
        let full = state.put(&large).unwrap_err();
        assert!(matches!(full, StateError::Full { .. }), "{full}");
        assert!(full.to_string().contains("state tmpfs is full"), "{full}");
        assert!(get(&state, A, "v").unwrap().is_some_and(|r| r == example(A, "v")));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    });
}

#[test]
fn other_faults_are_named_with_the_file() {
    let (dir, state) = open();
    fs::remove_dir(dir.path()).unwrap();
    let error = state.put(&example(A, "v")).unwrap_err().to_string();
    assert!(error.contains(&format!("state {A}.v: cannot create")), "{error}");
    let descriptors = StateError::of("node", "open", Errno::MFILE).to_string();
    assert!(descriptors.contains("out of descriptors"), "{descriptors}");
}

/// As an agent that was hostile may leave it.
#[test]
fn one_bad_name_never_fails_all() {
    let (dir, state) = open();
    let path = |name: &str| dir.path().join(name);
    state.put(&example(A, "good")).unwrap();
    for name in [".new-1-0", "node", &format!("{A}.v"), &format!("{A}.w")] {
        fs::create_dir_all(path(name).join("inner")).unwrap();
    }
    rustix::fs::mknodat(rustix::fs::CWD, path("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    fs::create_dir(path(".new-1-1")).unwrap();
    let good = |found: Vec<Found>| found.into_iter().filter(|f| f.record.is_ok()).count();
    assert_eq!(good(state.list().unwrap()), 1);
    assert!(!path(".new-1-1").exists(), "an empty directory can be removed");
    assert!(state.get_node().is_err());
    // Each takes its place.
    state.put(&example(A, "v")).unwrap();
    state.put_node(&node_record(Registration::Unknown)).unwrap();
    state.remove(&example(A, "w").volume).unwrap();
    assert!(get(&state, A, "w").unwrap().is_none());
    assert!(get(&state, A, "v").unwrap().is_some() && state.get_node().unwrap().is_some());
    assert_eq!(good(state.list().unwrap()), 2);
}

#[test]
fn records_of_volumes_that_are_gone_are_found_within_bounds() {
    let (dir, state) = open();
    for name in ["a", "b", "c", "d"] {
        state.put(&example(A, name)).unwrap();
    }
    for number in 0..40 {
        fs::write(dir.path().join(format!("z-{number}")), "junk").unwrap();
    }
    let known = [example(A, "b").volume];
    let names = |most| -> Vec<String> {
        let found = state.others(&known, most).unwrap();
        found.into_iter().map(|volume| volume.name.to_string()).collect()
    };
    assert_eq!(names(100), ["a", "c", "d"]);
    assert_eq!(names(2), ["a", "c"]);
    // Nothing was removed for that.
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 44);
}

#[test]
fn an_agent_that_took_its_own_right_away_is_undone() {
    let (dir, _) = open();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o0)).unwrap();
    let state = StateDir::new(
        rustix::fs::open(dir.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap(),
    );
    assert_eq!(fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777, 0o700);
    state.put(&example(A, "v")).unwrap();
}
