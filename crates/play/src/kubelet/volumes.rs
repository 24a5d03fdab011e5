//! The kubelet's own files of a volume.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::registration::Identity;
use super::{Kubelet, KubeletError, PodVolume, make_directory, sha256_hex};

impl Kubelet {
    /// `<root>/pods/<uid>`.
    pub fn pod_directory(&self, volume: &PodVolume) -> PathBuf {
        self.root.join("pods").join(&volume.pod_uid)
    }

    /// The volume's directory, which holds `vol_data.json` and `mount`.
    pub fn volume_directory(&self, volume: &PodVolume) -> PathBuf {
        self.pod_directory(volume).join("volumes/kubernetes.io~csi").join(&volume.volume_name)
    }

    /// Where the volume is published: `<root>/pods/<uid>/volumes/kubernetes.io~csi/<name>/mount`.
    pub fn target_path(&self, volume: &PodVolume) -> PathBuf {
        self.volume_directory(volume).join("mount")
    }

    /// Makes the pod's and the volume's directories (but not the target) and writes `vol_data.json`, as the
    /// kubelet does before NodePublishVolume.
    ///
    /// # Errors
    /// If a file or directory cannot be made.
    pub fn prepare(&self, volume: &PodVolume) -> Result<(), KubeletError> {
        let pod = self.pod_directory(volume);
        make_directory(&pod.join("plugins"))?;
        let directory = self.volume_directory(volume);
        make_directory(&directory)?;
        let data = directory.join("vol_data.json");
        fs::write(&data, self.vol_data(volume)).map_err(KubeletError::io("write", &data))
    }

    /// Mounts one file of a published volume for a container, as the kubelet does for `subPath`: an empty
    /// file, and the file of the volume on it. Returns where.
    ///
    /// # Errors
    /// If it cannot be made or mounted.
    pub fn mount_subpath(
        &self,
        volume: &PodVolume,
        container: &str,
        file: &str,
    ) -> Result<PathBuf, KubeletError> {
        let below = self.pod_directory(volume).join("volume-subpaths").join(&volume.volume_name);
        let place = below.join(container);
        make_directory(&place)?;
        let mounted = place.join("0");
        fs::write(&mounted, "").map_err(KubeletError::io("write", &mounted))?;
        let source = self.target_path(volume).join(file);
        rustix::mount::mount_bind(&source, &mounted)
            .map_err(|e| KubeletError::io("mount", &mounted)(e.into()))?;
        Ok(mounted)
    }

    /// What the kubelet writes into `vol_data.json`: keys in order, one line. The mode is 0644 less the
    /// umask.
    pub fn vol_data(&self, volume: &PodVolume) -> String {
        let attachment = sha256_hex(&[&volume.volume_id, &self.driver, &self.node]);
        let mut json = serde_json::json!({
            "attachmentID": format!("csi-{attachment}"),
            "driverName": self.driver,
            "nodeName": self.node,
            "specVolID": volume.volume_name,
            "volumeHandle": volume.volume_id,
            "volumeLifecycleMode": "Ephemeral",
        })
        .to_string();
        json.push('\n');
        json
    }

    /// Removes the volume, and the pod's directories if it was the last: each by name, as the kubelet does,
    /// never recursively. What is already gone is no error.
    ///
    /// # Errors
    /// If the driver left something in the target or it is still a mount: then everything stays.
    pub fn remove(&self, volume: &PodVolume) -> Result<(), KubeletError> {
        self.remove_volume(volume)?;
        let pod = self.pod_directory(volume);
        for directory in
            [pod.join("volumes/kubernetes.io~csi"), pod.join("volumes"), pod.join("plugins"), pod]
        {
            match fs::remove_dir(&directory) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => break,
                outcome => gone(&directory, outcome)?,
            }
        }
        Ok(())
    }

    /// `removeMountDir`: the target, the data file, the volume's directory.
    pub(super) fn remove_volume(&self, volume: &PodVolume) -> Result<(), KubeletError> {
        let target = self.target_path(volume);
        gone(&target, fs::remove_dir(&target))?;
        let data = self.volume_directory(volume).join("vol_data.json");
        gone(&data, fs::remove_file(&data))?;
        let directory = self.volume_directory(volume);
        gone(&directory, fs::remove_dir(&directory))
    }

    /// The sockets below `plugins_registry` that the kubelet's watcher would look at (names that begin with a
    /// dot are not), each with what tells it from a later one of the same name.
    pub(super) fn registration_sockets(&self) -> Result<Vec<(PathBuf, Identity)>, KubeletError> {
        let directory = self.root.join("plugins_registry");
        let failed = || KubeletError::io("list", &directory);
        let mut sockets = Vec::new();
        for entry in fs::read_dir(&directory).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            // It may be gone since.
            if let Ok(metadata) = fs::symlink_metadata(entry.path())
                && metadata.file_type().is_socket()
            {
                let identity = (metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec());
                sockets.push((entry.path(), identity));
            }
        }
        sockets.sort();
        Ok(sockets)
    }
}

fn gone(path: &Path, outcome: io::Result<()>) -> Result<(), KubeletError> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome.map_err(KubeletError::io("remove", path)),
    }
}
