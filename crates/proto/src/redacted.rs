//! `Debug` for messages that carry keys or tokens. Of maps, the keys are shown; of secrets, nothing.

use std::{collections::HashMap, fmt};

use crate::{csi, workload};

/// A map's keys in order, without values.
struct Keys<'a>(&'a HashMap<String, String>);

impl fmt::Debug for Keys<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut keys: Vec<_> = self.0.keys().collect();
        keys.sort();
        f.debug_set().entries(keys).finish()
    }
}

impl fmt::Debug for csi::NodePublishVolumeRequest {
    /// `volume_context` too is shown without values: kubelets before 1.35 put the tokens there.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodePublishVolumeRequest")
            .field("volume_id", &self.volume_id)
            .field("publish_context", &Keys(&self.publish_context))
            .field("staging_target_path", &self.staging_target_path)
            .field("target_path", &self.target_path)
            .field("volume_capability", &self.volume_capability)
            .field("readonly", &self.readonly)
            .field("secrets", &Keys(&self.secrets))
            .field("volume_context", &Keys(&self.volume_context))
            .finish()
    }
}

impl fmt::Debug for csi::NodeGetStorageHealthRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeGetStorageHealthRequest").field("secrets", &Keys(&self.secrets)).finish()
    }
}

impl fmt::Debug for csi::CreateVolumeRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateVolumeRequest")
            .field("name", &self.name)
            .field("capacity_range", &self.capacity_range)
            .field("volume_capabilities", &self.volume_capabilities)
            .field("parameters", &Keys(&self.parameters))
            .field("secrets", &Keys(&self.secrets))
            .finish()
    }
}

impl fmt::Debug for csi::DeleteVolumeRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeleteVolumeRequest")
            .field("volume_id", &self.volume_id)
            .field("secrets", &Keys(&self.secrets))
            .finish()
    }
}

impl fmt::Debug for workload::X509svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509SVID")
            .field("spiffe_id", &self.spiffe_id)
            .field("hint", &self.hint)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for workload::Jwtsvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JWTSVID")
            .field("spiffe_id", &self.spiffe_id)
            .field("hint", &self.hint)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for workload::ValidateJwtsvidRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValidateJWTSVIDRequest").field("audience", &self.audience).finish_non_exhaustive()
    }
}

impl fmt::Debug for workload::ValidateJwtsvidResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValidateJWTSVIDResponse").field("spiffe_id", &self.spiffe_id).finish_non_exhaustive()
    }
}
