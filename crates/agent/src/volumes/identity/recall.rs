//! The record of an identity, to and from what the volume holds.

use std::sync::Arc;

use seamount_identity::rotation::{self, random_jitter};
use seamount_identity::{BundleSet, PrivateKey, SpiffeId, X509Bundle, X509Svid};

use super::binding::IssuedSvid;
use crate::record::StoredSvid;

pub(in crate::volumes) fn stored(held: &IssuedSvid) -> StoredSvid {
    StoredSvid {
        spiffe_id: held.svid.id().to_string(),
        key: held.svid.key().expose_pkcs8_der().to_vec().into(),
        chain: held.svid.chain_der(),
        roots: held.bundles.own().der(),
        not_before: held.svid.not_before(),
        not_after: held.svid.not_after(),
        rotate_at: held.rotate_at,
    }
}

pub(in crate::volumes) fn held(stored: &StoredSvid) -> Result<IssuedSvid, String> {
    let key = PrivateKey::from_pkcs8_der(&stored.key).map_err(|e| e.to_string())?;
    let svid = X509Svid::parse(&stored.chain, key).map_err(|e| e.to_string())?;
    let id: SpiffeId = stored.spiffe_id.parse().map_err(|e| format!("{e}"))?;
    if *svid.id() != id {
        return Err(format!("it is of {}, the record says {id}", svid.id()));
    }
    let own = X509Bundle::from_der(id.trust_domain().clone(), &stored.roots).map_err(|e| e.to_string())?;
    // By the record it might never be due.
    let (from, until) = (svid.not_before(), svid.not_after());
    let plausible = (from..=rotation::due(from, until, 1.0)).contains(&stored.rotate_at);
    let rotate_at = if plausible { stored.rotate_at } else { rotation::due(from, until, random_jitter()) };
    Ok(IssuedSvid { svid: Arc::new(svid), rotate_at, bundles: Arc::new(BundleSet::new(own)) })
}
