//! The generated code keeps the contracts' numbers: bytes written by hand must decode to the right fields.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use prost::Message as _;
use seamount_proto::{csi, registration, workload};

/// Field 7 of NodePublishVolumeRequest is `secrets`, field 8 `volume_context`; an unknown field is ignored.
#[test]
fn csi_publish_numbers_and_unknown_fields() {
    let mut wire = vec![0x0a, 1, b'v', 0x22, 2, b'/', b't', 0x30, 1];
    wire.extend([0x3a, 6, 0x0a, 1, b'k', 0x12, 1, b's']);
    wire.extend([0x42, 6, 0x0a, 1, b'c', 0x12, 1, b'x']);
    wire.extend([0xfa, 0x3f, 1, 0]); // field 1023
    let request = csi::NodePublishVolumeRequest::decode(&wire[..]).unwrap();
    assert_eq!(
        (request.volume_id.as_str(), request.target_path.as_str(), request.readonly),
        ("v", "/t", true)
    );
    assert_eq!(request.secrets["k"], "s");
    assert_eq!(request.volume_context["c"], "x");
}

#[test]
fn csi_health_and_condition_numbers() {
    use csi::node_service_capability::rpc::Type;
    assert_eq!(Type::VolumeCondition as i32, 4);
    assert_eq!(Type::GetVolumeHealth as i32, 7);
    assert_eq!(Type::GetStorageHealth as i32, 8);
    use csi::VolumeHealthErrorType::{DataLoss, Degraded, Inaccessible};
    assert_eq!((Degraded as i32, Inaccessible as i32, DataLoss as i32), (1, 2, 3));
    use csi::StorageHealthErrorType::{StorageDegraded, StorageUnreachable};
    assert_eq!((StorageDegraded as i32, StorageUnreachable as i32), (1, 2));
    let health = csi::NodeGetVolumeHealthResponse {
        volume_health: Some(csi::VolumeHealth {
            volume_id: "v".into(),
            health_statuses: vec![csi::volume_health::VolumeHealthEntry {
                status: Inaccessible as i32,
                reason: "R".into(),
                message: "m".into(),
            }],
        }),
    };
    let entry = [0x08, 2, 0x12, 1, b'R', 0x1a, 1, b'm'];
    assert_eq!(health.encode_to_vec(), [&[0x0a, 13, 0x0a, 1, b'v', 0x12, 8], &entry[..]].concat());
    let stats = csi::NodeGetVolumeStatsResponse {
        usage: vec![],
        volume_condition: Some(csi::VolumeCondition { abnormal: true, message: "m".into() }),
    };
    assert_eq!(stats.encode_to_vec(), [0x12, 5, 0x08, 1, 0x12, 1, b'm']);
}

#[test]
fn service_paths() {
    assert_eq!(csi::identity_server::SERVICE_NAME, "csi.v1.Identity");
    assert_eq!(csi::node_server::SERVICE_NAME, "csi.v1.Node");
    assert_eq!(registration::registration_server::SERVICE_NAME, "pluginregistration.Registration");
    assert_eq!(workload::spiffe_workload_api_server::SERVICE_NAME, "SpiffeWorkloadAPI");
}

#[test]
fn workload_svid_numbers() {
    let svid = workload::X509svid {
        spiffe_id: "i".into(),
        x509_svid: "c".into(),
        x509_svid_key: "k".into(),
        bundle: "b".into(),
        hint: "h".into(),
    };
    assert_eq!(
        svid.encode_to_vec(),
        [0x0a, 1, b'i', 0x12, 1, b'c', 0x1a, 1, b'k', 0x22, 1, b'b', 0x2a, 1, b'h']
    );
}

#[test]
fn descriptors_name_the_service() {
    let set = prost_types::FileDescriptorSet::decode(seamount_proto::WORKLOAD_API_DESCRIPTORS).unwrap();
    assert!(set.file.iter().flat_map(|f| &f.service).any(|s| s.name() == "SpiffeWorkloadAPI"));
    assert!(prost_types::FileDescriptorSet::decode(seamount_proto::CSI_DESCRIPTORS).is_ok());
}

/// Nothing that prints a request, on purpose or by accident, prints a token or a key.
#[test]
fn debug_shows_no_secret() {
    let map = |key: &str| std::collections::HashMap::from([(key.to_owned(), "S3CRET".to_owned())]);
    let publish = csi::NodePublishVolumeRequest {
        volume_id: "v".into(),
        secrets: map("csi.storage.k8s.io/serviceAccount.tokens"),
        volume_context: map("in-context"),
        publish_context: map("in-publish"),
        ..Default::default()
    };
    let svid = workload::X509svid {
        spiffe_id: "spiffe://a/b".into(),
        x509_svid_key: "S3CRET".into(),
        ..Default::default()
    };
    let shown = format!(
        "{publish:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?}",
        workload::X509svidResponse { svids: vec![svid], ..Default::default() },
        csi::CreateVolumeRequest { secrets: map("a"), parameters: map("b"), ..Default::default() },
        csi::DeleteVolumeRequest { secrets: map("a"), ..Default::default() },
        csi::NodeGetStorageHealthRequest { secrets: map("a") },
        workload::Jwtsvid { svid: "S3CRET".into(), ..Default::default() },
        workload::ValidateJwtsvidRequest { svid: "S3CRET".into(), ..Default::default() },
        workload::ValidateJwtsvidResponse::default(),
    );
    assert!(!shown.contains("S3CRET"), "{shown}");
    for expected in ["serviceAccount.tokens", "in-context", "spiffe://a/b"] {
        assert!(shown.contains(expected), "{shown}");
    }
}
