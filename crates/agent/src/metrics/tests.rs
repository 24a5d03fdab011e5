use std::time::SystemTime;

use seamount_telemetry::metrics::Outcome;
use seamount_workload_api::Observer;

use super::*;
use crate::volumes::metrics::{SourceLabel, VolumeState};

fn text(metrics: &Metrics) -> String {
    metrics.registry().encode().unwrap()
}

#[track_caller]
fn has(metrics: &Metrics, line: &str) {
    let text = text(metrics);
    assert!(text.lines().any(|l| l == line), "{line:?} is not in\n{text}");
}

#[test]
fn all_are_there_from_the_start() {
    let metrics = Metrics::default();
    // At an agent's start there are drivers.
    metrics.registration.registration("csi.spiffe.io", None);
    let text = text(&metrics);
    for name in [
        "seamount_publish_duration_seconds",
        "seamount_unpublish_duration_seconds",
        "seamount_svid_earliest_expiry_timestamp_seconds",
        "seamount_workload_api_connections",
        "seamount_workload_api_streams",
        "seamount_svid_rotations",
        "seamount_mounter_connected",
        "seamount_kubelet_registered",
        "seamount_token_key_refreshes",
    ] {
        assert!(text.contains(&format!("# HELP {name} ")), "{name} is not in\n{text}");
    }
    has(&metrics, r#"seamount_svid_rotations_total{result="error"} 0"#);
    assert!(text.ends_with("# EOF\n"));
    has(&metrics, concat!(r#"seamount_agent_build_info{version=""#, env!("CARGO_PKG_VERSION"), r#""} 1"#));
}

#[test]
fn each_area_counts_for_all_to_see() {
    let metrics = Metrics::default();
    metrics.volumes.rotation(Outcome::success);
    metrics.volumes.authority.request(Outcome::error, SystemTime::now());
    let observer: Arc<dyn Observer> = Arc::clone(&metrics.workload_api) as _;
    observer.connection(1);
    observer.connection(1);
    observer.connection(-1);
    observer.stream(1);
    observer.refused("no security header");
    metrics.mounter.connected(true);
    metrics.mounter.connected(false);
    metrics.mounter.connected(true);
    metrics.registration.registration("csi.spiffe.io", Some(true));
    metrics.process.set_descriptors(u64::MAX);
    has(&metrics, r#"seamount_svid_rotations_total{result="success"} 1"#);
    has(&metrics, r#"seamount_authority_requests_total{result="error"} 1"#);
    has(&metrics, "seamount_authority_last_success_timestamp_seconds 0.0");
    has(&metrics, "seamount_token_keys_timestamp_seconds 0.0");
    has(&metrics, "seamount_workload_api_connections 1");
    has(&metrics, "seamount_workload_api_streams 1");
    has(&metrics, r#"seamount_workload_api_refused_total{reason="no security header"} 1"#);
    has(&metrics, "seamount_mounter_connected 1");
    has(&metrics, "seamount_mounter_connections_total 2");
    has(&metrics, r#"seamount_kubelet_registered{driver="csi.spiffe.io"} 1"#);
    metrics.registration.registration("csi.spiffe.io", Some(false));
    has(&metrics, r#"seamount_kubelet_registered{driver="csi.spiffe.io"} -1"#);
    has(&metrics, "seamount_descriptor_limit 9223372036854775807");
}

/// Series without labels yet are not in the text, so every metric is touched first.
#[test]
fn the_manual_lists_every_metric_and_no_other() {
    let metrics = Metrics::default();
    metrics.csi.refused("publish", "form");
    metrics.registration.registration("csi.spiffe.io", None);
    metrics.volumes.leftovers(0, 0, 0);
    Observer::refused(&*metrics.workload_api, "too many");
    metrics.volumes.volume("a/v", SourceLabel::directory, VolumeState::unavailable, None);
    let text = text(&metrics);
    let mut exposed: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
        .collect();
    let manual = include_str!("../../../../docs/operations.md");
    let mut listed: Vec<_> = manual
        .lines()
        .filter_map(|line| line.strip_prefix("| `seamount_")?.split_once("` | "))
        .map(|(name, rest)| {
            let mut columns = rest.split(" | ");
            let kind = columns.next().unwrap().to_owned();
            // A name that says its unit is told no other.
            if name.ends_with("_seconds") {
                assert!(columns.next().unwrap().contains("seconds"), "{name}");
            }
            (format!("seamount_{name}"), kind)
        })
        .collect();
    exposed.sort_unstable();
    listed.sort_unstable();
    assert_eq!(exposed, listed);
}
