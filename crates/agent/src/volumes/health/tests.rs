use super::*;

const OK: OnDisk = OnDisk::Flags(flag::IDENTITY | flag::SOCKET);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn ready() -> Status {
    let not_after = now() + Duration::from_secs(60);
    Status { content: Content::Ready { not_after }, failure: None, serving: true, rotate_at: None }
}

fn reasons(status: Option<&Status>, disk: OnDisk) -> Vec<&'static str> {
    conditions(status, disk, now()).into_iter().map(|c| c.reason).collect()
}

#[test]
fn a_served_volume_with_a_valid_svid_is_healthy() {
    assert!(reasons(Some(&ready()), OK).is_empty());
    let external = Status { content: Content::External, failure: None, serving: false, rotate_at: None };
    assert!(reasons(Some(&external), OnDisk::Flags(flag::DIRECTORY)).is_empty());
}

#[test]
fn the_socket_is_reported() {
    assert_eq!(reasons(Some(&ready()), OnDisk::Flags(flag::IDENTITY)), ["SocketMissing"]);
    assert_eq!(reasons(Some(&ready()), OnDisk::Nothing), ["VolumeMissing"]);
    assert_eq!(reasons(Some(&ready()), OnDisk::Unasked), ["MounterUnreachable"]);
    assert_eq!(reasons(Some(&Status { serving: false, ..ready() }), OK), ["NotServed"]);
}

#[test]
fn the_identity_is_reported() {
    let late = Status { content: Content::Pending { since: now() - GRACE * 2 }, ..ready() };
    assert_eq!(reasons(Some(&late), OK), ["IdentityPending"]);
    let fresh = Status { content: Content::Pending { since: now() }, ..ready() };
    assert!(reasons(Some(&fresh), OK).is_empty());
    let failed = Status { failure: Some("no root".into()), ..fresh };
    let found = conditions(Some(&failed), OK, now());
    assert!(found[0].message.contains("no root"), "{found:?}");
    let expired = Status { content: Content::Ready { not_after: now() }, ..ready() };
    assert_eq!(reasons(Some(&expired), OK), ["IdentityExpired"]);
    let failing = Status { failure: Some("no root".into()), ..ready() };
    let found = conditions(Some(&failing), OK, now());
    assert_eq!((found[0].severity, found[0].reason), (Severity::Degraded, "RotationFailing"));
    assert_eq!(reasons(Some(&Status { content: Content::Unknown, ..ready() }), OK), ["IdentityUnknown"]);
}

#[test]
fn a_renewal_that_nobody_refused_is_reported_when_it_is_overdue() {
    let not_after = now() + Duration::from_secs(60);
    let due = |seconds| Status { rotate_at: Some(now() - Duration::from_secs(seconds)), ..ready() };
    // 80 s before its end: overdue 20 s later.
    assert!(conditions(Some(&due(19)), OK, now()).is_empty());
    let overdue_at = overdue(not_after - Duration::from_secs(80), not_after);
    assert_eq!(overdue_at, now());
    assert_eq!(reasons(Some(&due(20)), OK), ["RotationOverdue"]);
    let failing = Status { failure: Some("no root".into()), ..due(20) };
    assert_eq!(reasons(Some(&failing), OK), ["RotationFailing"]);
}

#[test]
fn an_orphan_is_reported_and_no_republish_promised() {
    let disk = OnDisk::Flags(flag::IDENTITY | flag::SOCKET | flag::ORPHAN);
    assert_eq!(reasons(None, disk), ["Orphan"]);
}

#[test]
fn the_source_is_reported() {
    let external = Status { content: Content::External, failure: None, serving: false, rotate_at: None };
    let found = conditions(Some(&external), OnDisk::Flags(flag::DIRECTORY | flag::STALE), now());
    assert!(found[0].message.contains("restart the pod"), "{found:?}");
    assert_eq!(reasons(Some(&external), OnDisk::Flags(flag::FOREIGN)), ["ForeignMount"]);
}

#[test]
fn the_worst_comes_first() {
    let failing = Status { failure: Some("no root".into()), ..ready() };
    assert_eq!(reasons(Some(&failing), OnDisk::Nothing), ["VolumeMissing", "RotationFailing"]);
    let expired = Status { content: Content::Ready { not_after: now() }, ..ready() };
    assert_eq!(reasons(Some(&expired), OnDisk::Unasked), ["IdentityExpired", "MounterUnreachable"]);
}

#[test]
fn a_dead_subpath_names_container_and_remedy() {
    assert_eq!(dead_subpaths(""), None);
    let found = dead_subpaths("app, helper").unwrap();
    assert_eq!((found.severity, found.reason), (Severity::Inaccessible, "SubPathDead"));
    for part in ["app, helper", "restart the pod", "mount the directory"] {
        assert!(found.message.contains(part), "{part}");
    }
}
