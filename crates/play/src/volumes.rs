//! The kubelet's own volumes: empty directories and the files of ConfigMaps and Secrets.

use std::fs;
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use super::manifest::{File, Source, Volume};

/// Makes the volume below the pod's directory and says where it is; `None` for a volume that a driver makes.
pub fn make(pod: &Path, volume: &Volume, fs_group: Option<u32>) -> io::Result<Option<PathBuf>> {
    let plugin = match &volume.source {
        Source::Csi { .. } => return Ok(None),
        Source::EmptyDir => "kubernetes.io~empty-dir",
        Source::Files(_) => "kubernetes.io~configmap",
    };
    let path = pod.join("volumes").join(plugin).join(&volume.name);
    fs::create_dir_all(&path)?;
    match &volume.source {
        Source::Files(files) => {
            directory(&path, 0o755, fs_group)?;
            for file in files {
                write(&path, file, fs_group)?;
            }
        }
        // The kubelet's mode for an emptyDir.
        _ => directory(&path, 0o777, fs_group)?,
    }
    Ok(Some(path))
}

/// Removes what [`make`] made for this pod, and the pod's directory if nothing else is in it.
pub fn remove(pod: &Path) -> io::Result<()> {
    for plugin in ["kubernetes.io~empty-dir", "kubernetes.io~configmap"] {
        gone(fs::remove_dir_all(pod.join("volumes").join(plugin)))?;
    }
    for directory in [pod.join("volumes"), pod.to_owned()] {
        match gone(fs::remove_dir(directory)) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => break,
            outcome => outcome?,
        }
    }
    Ok(())
}

fn gone(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// With a group: owned by it, and what is made inside belongs to it too (Kubernetes `volume_linux.go`).
fn directory(path: &Path, mode: u32, fs_group: Option<u32>) -> io::Result<()> {
    if let Some(gid) = fs_group {
        chown(path, None, Some(gid))?;
    }
    let mode = if fs_group.is_some() { mode | 0o2770 } else { mode };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn write(volume: &Path, file: &File, fs_group: Option<u32>) -> io::Result<()> {
    let path = volume.join(&file.path);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut options = fs::OpenOptions::new();
    // No other user may look before the mode is right.
    let mut out = options.write(true).create_new(true).mode(0o600).open(&path)?;
    io::Write::write_all(&mut out, &file.data)?;
    let mut mode = file.mode;
    if let Some(gid) = fs_group {
        chown(&path, None, Some(gid))?;
        mode |= 0o440;
    }
    out.set_permissions(fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_their_modes_and_paths() {
        let pod = tempfile::tempdir().unwrap();
        let files = vec![
            File { path: "a".into(), mode: 0o400, data: b"1".to_vec() },
            File { path: "deep/er/b".into(), mode: 0o644, data: b"2".to_vec() },
        ];
        let volume = Volume { name: "v".into(), source: Source::Files(files) };
        let path = make(pod.path(), &volume, None).unwrap().unwrap();
        assert_eq!(fs::read(path.join("deep/er/b")).unwrap(), b"2");
        assert_eq!(fs::metadata(path.join("a")).unwrap().permissions().mode() & 0o7777, 0o400);
        let own = rustix::process::getegid().as_raw();
        let volume = Volume { name: "w".into(), source: Source::EmptyDir };
        let path = make(pod.path(), &volume, Some(own)).unwrap().unwrap();
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o7777, 0o2777);
        remove(pod.path()).unwrap();
        assert!(!pod.path().exists());
        remove(pod.path()).unwrap();
    }
}
