//! gRPC server reflection v1 and v1alpha, by tonic's services.

use std::sync::LazyLock;

use tower::util::BoxCloneSyncService;

use crate::{handler::Routed, message::MAX_REQUEST, shared::Shared};

/// The service, once its descriptors have loaded.
pub(crate) fn v1(_: &Shared) -> Option<Routed> {
    SERVICES.as_ref().map(|(v1, _)| v1.clone())
}

/// Likewise.
pub(crate) fn v1alpha(_: &Shared) -> Option<Routed> {
    SERVICES.as_ref().map(|(_, v1alpha)| v1alpha.clone())
}

/// Made once for all sockets. `None` if the descriptors do not load, which a test excludes.
static SERVICES: LazyLock<Option<(Routed, Routed)>> = LazyLock::new(|| {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(seamount_proto::WORKLOAD_API_DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let v1 = builder().build_v1().ok()?.max_decoding_message_size(MAX_REQUEST);
    let v1alpha = builder().build_v1alpha().ok()?.max_decoding_message_size(MAX_REQUEST);
    Some((BoxCloneSyncService::new(v1), BoxCloneSyncService::new(v1alpha)))
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_descriptors_load() {
        assert!(SERVICES.is_some());
    }
}
