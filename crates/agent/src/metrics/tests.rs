use super::*;

fn text(metrics: &Metrics) -> String {
    metrics.encode().unwrap()
}

#[track_caller]
fn has(metrics: &Metrics, line: &str) {
    let text = text(metrics);
    assert!(text.lines().any(|l| l == line), "{line:?} is not in\n{text}");
}

#[test]
fn all_are_there_from_the_start() {
    let metrics = Metrics::new();
    // At an agent's start there are drivers.
    metrics.registration("csi.spiffe.io", None);
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
fn operations_are_counted_by_result() {
    let metrics = Metrics::new();
    metrics.published(Outcome::success, Duration::from_millis(2));
    metrics.published(Outcome::success, Duration::from_millis(20));
    metrics.published(Outcome::refused, Duration::from_micros(100));
    metrics.unpublished(Outcome::error, Duration::from_secs(200));
    metrics.refused("publish", "mismatch");
    metrics.rotation(Outcome::success);
    metrics.keys(Outcome::error, SystemTime::now());
    has(&metrics, r#"seamount_publish_duration_seconds_count{result="success"} 2"#);
    has(&metrics, r#"seamount_publish_duration_seconds_bucket{le="0.0025",result="success"} 1"#);
    has(&metrics, r#"seamount_publish_duration_seconds_count{result="refused"} 1"#);
    has(&metrics, r#"seamount_unpublish_duration_seconds_bucket{le="120.0",result="error"} 0"#);
    has(&metrics, r#"seamount_unpublish_duration_seconds_count{result="error"} 1"#);
    has(&metrics, r#"seamount_csi_refused_requests_total{operation="publish",kind="mismatch"} 1"#);
    has(&metrics, r#"seamount_svid_rotations_total{result="success"} 1"#);
    has(&metrics, r#"seamount_token_key_refreshes_total{result="error"} 1"#);
    has(&metrics, "seamount_token_keys_timestamp_seconds 0.0");
}

#[test]
fn each_volume_counts_once_wherever_it_stands() {
    use {SourceLabel::authority, VolumeState::*};
    let metrics = Metrics::new();
    let at = |seconds| {
        let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        Some(Schedule { overdue: not_after - Duration::from_secs(600), not_after })
    };
    metrics.volume("a/v", authority, pending, None);
    metrics.volume("b/v", authority, pending, None);
    has(&metrics, r#"seamount_volumes{source="authority",state="pending"} 2"#);
    metrics.volume("a/v", authority, ready, at(2000));
    metrics.volume("a/v", authority, ready, at(3000));
    metrics.volume("b/v", authority, ready, at(2500));
    has(&metrics, r#"seamount_volumes{source="authority",state="pending"} 0"#);
    has(&metrics, r#"seamount_volumes{source="authority",state="ready"} 2"#);
    has(&metrics, "seamount_svid_earliest_expiry_timestamp_seconds 2500.0");
    let now = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    assert_eq!(metrics.late(now(1899)), (0, 0));
    assert_eq!(metrics.late(now(1900)), (1, 0));
    assert_eq!(metrics.late(now(2500)), (2, 1));
    has(&metrics, "seamount_svids_overdue 2");
    has(&metrics, "seamount_svids_expired 2");
    metrics.volume_gone("b/v");
    metrics.volume_gone("b/v");
    has(&metrics, "seamount_svids_expired 1");
    has(&metrics, r#"seamount_volumes{source="authority",state="ready"} 1"#);
    has(&metrics, "seamount_svid_earliest_expiry_timestamp_seconds 3000.0");
    metrics.volume_gone("a/v");
    has(&metrics, "seamount_svid_earliest_expiry_timestamp_seconds 0.0");
}

#[test]
fn connections_and_streams_go_up_and_down() {
    let metrics = Metrics::new();
    let observer: &dyn Observer = &metrics;
    observer.connection(1);
    observer.connection(1);
    observer.connection(-1);
    observer.stream(1);
    observer.refused("no security header");
    metrics.mounter(true);
    metrics.mounter(false);
    metrics.mounter(true);
    metrics.registration("csi.spiffe.io", Some(true));
    metrics.descriptor_limit(u64::MAX);
    has(&metrics, "seamount_workload_api_connections 1");
    has(&metrics, "seamount_workload_api_streams 1");
    has(&metrics, r#"seamount_workload_api_refused_total{reason="no security header"} 1"#);
    has(&metrics, "seamount_mounter_connected 1");
    has(&metrics, "seamount_mounter_connections_total 2");
    has(&metrics, r#"seamount_kubelet_registered{driver="csi.spiffe.io"} 1"#);
    metrics.registration("csi.spiffe.io", Some(false));
    has(&metrics, r#"seamount_kubelet_registered{driver="csi.spiffe.io"} -1"#);
    has(&metrics, "seamount_descriptor_limit 9223372036854775807");
}

/// Series without labels yet are not in the text, so every metric is touched first.
#[test]
fn the_manual_lists_every_metric_and_no_other() {
    let metrics = Metrics::new();
    metrics.refused("publish", "form");
    metrics.leftovers(0, 0, 0);
    Observer::refused(&metrics, "too many");
    metrics.volume("a/v", SourceLabel::directory, VolumeState::unavailable, None);
    metrics.registration("csi.spiffe.io", None);
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
