//! A root for the embedded authority, where a cluster would mount its Secret.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType};

/// Writes `tls.crt` and `tls.key` of a new root for `spiffe://example.org` into `directory`, readable by
/// `uid` alone. Replaces what is there.
pub fn write_root(directory: &Path, uid: u32) -> anyhow::Result<()> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "root");
    params.subject_alt_names = vec![SanType::URI("spiffe://example.org".try_into()?)];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    for (name, text) in [("tls.crt", certificate.pem()), ("tls.key", key.serialize_pem())] {
        let path = directory.join(name);
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400))?;
        chown(&path, Some(uid), Some(uid))?;
    }
    Ok(())
}
