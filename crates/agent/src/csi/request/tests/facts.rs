//! What a request says against what the token proves, and the requests for volumes that exist.

use proptest::prelude::*;
use seamount_pod_token::TokenError;

use super::*;

#[test]
fn the_volume_context_is_a_fallback_where_it_is_allowed() {
    let rules = Rules { allow_volume_context: true, ..rules() };
    let mut old_kubelet = good();
    let json = old_kubelet.secrets.remove(TOKENS).unwrap();
    old_kubelet.volume_context.insert(TOKENS.to_owned(), json.clone());
    assert_eq!(publish(old_kubelet.clone(), &rules).unwrap().token.unwrap().expose(), SECRET);
    // Still never both.
    old_kubelet.secrets.insert(TOKENS.to_owned(), json);
    assert_eq!(publish(old_kubelet, &rules), Err(Refusal::TokenTwice));
    let mut none = good();
    none.secrets.clear();
    assert!(matches!(publish(none, &rules), Err(Refusal::NoToken { .. })));
}

#[test]
fn the_directory_source_needs_no_token_but_everything_else() {
    let rules = Rules { audience: None, ..rules() };
    let mut request = good();
    request.secrets.clear();
    assert_eq!(publish(request.clone(), &rules).unwrap().token, None);
    // A CSIDriver object with tokenRequests does no harm; the token is not kept.
    assert_eq!(publish(good(), &rules).unwrap().token, None);
    request.volume_context.insert(POD_UID.to_owned(), OTHER_UID.to_owned());
    assert!(matches!(publish(request.clone(), &rules), Err(Refusal::PodUid { .. })));
    request.volume_context.remove(POD_UID);
    assert!(matches!(publish(request, &rules), Err(Refusal::Missing { .. })));
}

#[test]
fn parameters_change_with_what_must_not_change() {
    let of = |change: fn(&mut Request)| {
        let mut request = good();
        change(&mut request);
        publish(request, &rules()).unwrap().parameters
    };
    let same = of(|_| ());
    assert_eq!(of(|r| secret(tokens("seamount.dev").replace("header", "other"))(r)), same, "a new token");
    assert_ne!(of(|r| r.volume_id = "csi-other".into()), same, "volume id");
    assert_ne!(of(|r| mode(7)(r)), same, "access mode");
    assert_ne!(of(|r| put(POD_NAME, "cart-1")(r)), same, "pod name");
    assert_ne!(of(|r| put(POD_NAMESPACE, "bank")(r)), same, "namespace");
    assert_ne!(of(|r| put(SERVICE_ACCOUNT, "admin")(r)), same, "service account");
}

#[test]
fn what_the_token_proves_is_the_workload() {
    let workload = bind(&publish(good(), &rules()).unwrap(), &claims(), "node-1").unwrap();
    assert_eq!(workload.namespace, "shop");
    assert_eq!(workload.service_account, "cart");
    assert_eq!(workload.pod_name, "cart-0");
    assert_eq!(workload.pod_uid, UID);
    assert_eq!(workload.node, "node-1");
}

/// The forgeries of an author whose CSIDriver object has no `podInfoOnMount`: his attributes arrive as the
/// kubelet's.
#[test]
fn each_forged_fact_is_named() {
    let forgeries: [(&str, &str, &str); 3] = [
        (POD_NAME, "admin-0", "pod.name"),
        (POD_NAMESPACE, "kube-system", "pod.namespace"),
        (SERVICE_ACCOUNT, "admin", "serviceAccount.name"),
    ];
    for (key, value, name) in forgeries {
        let mut request = good();
        request.volume_context.insert(key.to_owned(), value.to_owned());
        let refusal = bind(&publish(request, &rules()).unwrap(), &claims(), "node-1").unwrap_err();
        let status = Status::from(refusal);
        assert_eq!(status.code(), Code::PermissionDenied, "{key}");
        assert!(status.message().contains(name) && status.message().contains(value), "{}", status.message());
    }
}

/// A token stolen from another pod, or from the same pod on another node.
#[test]
fn a_token_of_another_pod_or_node_is_refused() {
    let request = publish(good(), &rules()).unwrap();
    let with = |change: fn(&mut Claims)| {
        let mut claims = claims();
        change(&mut claims);
        Status::from(bind(&request, &claims, "node-1").unwrap_err())
    };
    for (status, says) in [
        (with(|c| c.pod_uid = OTHER_UID.into()), "target_path (pod UID)"),
        (with(|c| c.pod_name = "cart-1".into()), "pod.name"),
        (with(|c| c.namespace = "bank".into()), "pod.namespace"),
        (with(|c| c.service_account = "default".into()), "serviceAccount.name"),
        (with(|c| c.node = "node-2".into()), "nodeName is \"node-1\""),
    ] {
        assert_eq!(status.code(), Code::PermissionDenied);
        assert!(status.message().contains(says), "{}", status.message());
    }
}

#[test]
fn token_errors_become_codes() {
    let code = |e: TokenError| Status::from(Refusal::from(e)).code();
    assert_eq!(code(TokenError::KeysUnavailable("no route".into())), Code::Unavailable);
    assert_eq!(code(TokenError::Signature), Code::PermissionDenied);
    assert_eq!(code(TokenError::Expired(1)), Code::PermissionDenied);
}

#[test]
fn unpublish_needs_id_and_path_alone() {
    let request = |id: &str, path: &str| {
        let request = NodeUnpublishVolumeRequest { volume_id: id.into(), target_path: path.into() };
        unpublish(&request, &basic()).map_err(Status::from)
    };
    let volume = request("csi-1", &path()).unwrap();
    assert_eq!((volume.pod.as_str(), volume.name.as_str(), volume.id.as_str()), (UID, "identity", "csi-1"));
    for (id, path, says) in [
        ("", path(), "volume_id"),
        ("csi-1", String::new(), "target_path"),
        ("csi-1", "/etc".into(), "target_path"),
        ("csi-1", path().replace("identity", ".."), "target_path"),
        ("csi-1", path() + "\0", "target_path"),
        ("csi-1", "/".repeat(5000), "target_path"),
        ("..", path(), "volume_id"),
        ("a\0", path(), "volume_id"),
    ] {
        let status = request(id, &path).unwrap_err();
        assert_eq!(status.code(), INVALID, "{id:?} {path:?}");
        assert!(status.message().contains(says), "{}", status.message());
    }
}

/// csi-sanity 5.6.0, NodeGetVolumeStats: missing id and path are InvalidArgument, an unknown volume or path
/// NotFound.
#[test]
fn stats_and_health() {
    let stats = |id: &str, path: &str| {
        let request = NodeGetVolumeStatsRequest {
            volume_id: id.into(),
            volume_path: path.into(),
            ..NodeGetVolumeStatsRequest::default()
        };
        stats(&request, &rules()).map_err(|r| Status::from(r).code())
    };
    assert_eq!(stats("csi-1", &path()).unwrap().name.as_str(), "identity");
    assert_eq!(stats("", &path()), Err(INVALID));
    assert_eq!(stats("csi-1", ""), Err(INVALID));
    assert_eq!(stats("csi-1", "some/path"), Err(Code::NotFound));
    assert_eq!(stats("csi-1", "/tmp/../etc"), Err(Code::NotFound));
    assert_eq!(stats("csi-1", "/tmp/\0"), Err(INVALID));
    assert_eq!(stats("csi-1", &"/".repeat(5000)), Err(INVALID));

    let health = |id: &str, path: &str| {
        let request = NodeGetVolumeHealthRequest {
            volume_id: id.into(),
            volume_publish_path: path.into(),
            ..NodeGetVolumeHealthRequest::default()
        };
        health(&request, &rules()).map_err(|r| Status::from(r).code())
    };
    assert!(matches!(health("csi-1", &path()), Ok(HealthTarget::Volume(v)) if v.name.as_str() == "identity"));
    assert!(matches!(health("csi-1", ""), Ok(HealthTarget::Id(id)) if id.as_str() == "csi-1"));
    assert_eq!(health("", &path()), Err(INVALID));
    assert_eq!(health("csi-1", "some/path"), Err(Code::NotFound));
}

#[test]
fn quoting_escapes_and_cuts() {
    assert_eq!(quote("a\"\n\u{1b}"), r#""a\"\n\u{1b}""#);
    let long = quote(&"é".repeat(500));
    assert_eq!(long.chars().count(), 83);
    assert!(long.ends_with("\"…"));
}

proptest! {
    /// A path that is accepted is spelled in exactly one way.
    #[test]
    fn an_accepted_path_is_the_kubelets(path in "(/var/lib/kubelet)?(/|[a-z0-9~.-]{1,12}|pods|volumes|mount){0,12}") {
        if let Ok((pod, name)) = target_path("target_path", &path, ROOT) {
            let again = format!("{ROOT}/pods/{pod}/volumes/kubernetes.io~csi/{name}/mount");
            prop_assert_eq!(path, again);
        }
    }

    #[test]
    fn no_string_panics(id in ".*", path in ".*", key in ".*", value in ".*", json in ".*") {
        let mut request = good();
        request.volume_id.clone_from(&id);
        let _ = publish(request.clone(), &rules());
        request = good();
        request.target_path.clone_from(&path);
        let _ = publish(request, &rules());
        let mut request = good();
        request.volume_context.insert(key, value);
        let _ = publish(request, &rules());
        let mut request = good();
        secret(json)(&mut request);
        let _ = publish(request, &rules());
        let _ = unpublish(&NodeUnpublishVolumeRequest { volume_id: id, target_path: path }, &rules());
    }
}
