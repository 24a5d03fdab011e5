//! Files as `spire-agent api fetch x509 -write` makes them: `svid.N.pem` (chain, leaf first), `svid.N.key`
//! (PKCS#8), `bundle.N.pem` (the SVID's own trust domain), `federated_bundle.N.M.pem` (the others, by name).

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::show::Shown;

/// Writes an answer's files. Each appears whole or not at all; keys are readable by the caller alone.
///
/// # Errors
/// Which file, and why.
pub fn write(directory: &Path, shown: &Shown) -> anyhow::Result<()> {
    if shown.svids.is_empty() {
        anyhow::bail!("--write writes SVIDs with their bundles: use it with `fetch x509` or `watch`");
    }
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    for (n, svid) in shown.svids.iter().enumerate() {
        // The key first: a reader that sees a new certificate finds its key.
        replace(&directory.join(format!("svid.{n}.key")), svid.key_pem().as_bytes(), 0o600)?;
        replace(&directory.join(format!("svid.{n}.pem")), svid.chain_pem.as_bytes(), 0o644)?;
        replace(&directory.join(format!("bundle.{n}.pem")), svid.bundle_pem.as_bytes(), 0o644)?;
        for (m, bundle) in shown.foreign_bundles(svid).iter().enumerate() {
            replace(&directory.join(format!("federated_bundle.{n}.{m}.pem")), bundle.as_bytes(), 0o644)?;
        }
    }
    Ok(())
}

/// Writes a new file of this mode and renames it over the old one.
fn replace(path: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(name);
    let outcome = fill(&temporary, content, mode).and_then(|()| fs::rename(&temporary, path));
    if outcome.is_err() {
        // What is left of it is of no use; the error that counts is the first.
        let _ = fs::remove_file(&temporary);
    }
    outcome.with_context(|| format!("cannot write {}", path.display()))
}

fn fill(path: &Path, content: &[u8], mode: u32) -> std::io::Result<()> {
    // Of a run that was killed, with our pid.
    let _ = fs::remove_file(path);
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}
