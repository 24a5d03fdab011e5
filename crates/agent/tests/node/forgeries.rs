//! Who a pod is, is decided by its token alone: every way of lying is refused, by name, and changes nothing.

use std::time::{Duration, SystemTime};

use seamount_proto::csi::NodePublishVolumeRequest;
use seamount_testkit::issuer::{Claims, TokenIssuer};
use seamount_testkit::kubelet::PodVolume;
use seamount_testkit::uuid_of;
use tonic::Code;

use super::harness::*;

const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// Publishes with this change, and demands a refusal with this code and these words, and that nothing was
/// made.
async fn refused(
    node: &Node,
    volume: &PodVolume,
    change: impl FnOnce(&mut NodePublishVolumeRequest),
    code: Code,
    words: &[&str],
) {
    let mut request = node.kubelet.publish_request(volume, Some(&node.tokens(volume)));
    change(&mut request);
    let status = node.kubelet.publish_raw(request).await.expect_err("the forgery was believed");
    assert_eq!(status.code(), code, "{}", status.message());
    for word in words {
        assert!(status.message().contains(word), "{word:?} is not in {:?}", status.message());
    }
    assert!(!status.message().contains("eyJ"), "a token is in the message");
    assert!(!node.kubelet.target_path(volume).exists(), "something was made");
}

fn set(tokens: String) -> impl FnOnce(&mut NodePublishVolumeRequest) {
    move |request| {
        request.secrets.insert(TOKENS.to_owned(), tokens);
    }
}

#[test]
fn tokens_of_somebody_else_are_refused() {
    on_node("tokens_of_somebody_else_are_refused", async |node| {
        node.start().await;
        let volume = node.volume("shop", "frontend", "web-1");
        node.kubelet.prepare(&volume).unwrap();
        let good = node.claims(&volume);
        let others: [(Claims, &str); 5] = [
            (Claims { pod_name: "web-2".into(), ..good.clone() }, "pod.name"),
            (Claims { pod_uid: uuid_of("other"), ..good.clone() }, "pod UID"),
            (Claims { namespace: "bank".into(), ..good.clone() }, "pod.namespace"),
            (Claims { service_account: "admin".into(), ..good.clone() }, "serviceAccount.name"),
            (Claims { node: "node-2".into(), ..good.clone() }, "nodeName"),
        ];
        for (claims, field) in others {
            let tokens = node.issuer.tokens_json(&claims);
            refused(node, &volume, set(tokens), Code::PermissionDenied, &[field]).await;
        }
        // And the honest one is taken.
        node.kubelet.publish(&volume, Some(&node.tokens(&volume))).await.unwrap();
    });
}

#[test]
fn tokens_that_do_not_hold_are_refused() {
    on_node("tokens_that_do_not_hold_are_refused", async |node| {
        node.start().await;
        let volume = node.volume("shop", "frontend", "web-1");
        node.kubelet.prepare(&volume).unwrap();
        let good = node.claims(&volume);
        let denied = Code::PermissionDenied;

        let elsewhere = Claims { audience: vec!["vault".into()], ..good.clone() };
        let tokens = node.issuer.tokens_json(&elsewhere);
        refused(node, &volume, set(tokens), Code::InvalidArgument, &["vault"]).await;
        // The JSON says our audience, the token does not.
        let token = node.issuer.token(&elsewhere);
        refused(node, &volume, set(wrap(&token)), denied, &["audience"]).await;

        let long_ago = SystemTime::now() - Duration::from_secs(7200);
        let expired = Claims { issued_at: long_ago, ..good.clone() };
        refused(node, &volume, set(wrap(&node.issuer.token(&expired))), denied, &["expired"]).await;

        let foreign = TokenIssuer::new("https://evil.example.org");
        refused(node, &volume, set(wrap(&foreign.token(&good))), denied, &[]).await;
        let same_name = TokenIssuer::new(ISSUER);
        refused(node, &volume, set(wrap(&same_name.token(&good))), denied, &[]).await;

        refused(node, &volume, set(wrap(&node.issuer.forged_with_other_key(&good))), denied, &["signature"])
            .await;
        refused(node, &volume, set(wrap(&node.issuer.forged_without_signature(&good))), denied, &[]).await;
        refused(node, &volume, set(wrap(&node.issuer.forged_with_public_key_as_secret(&good))), denied, &[])
            .await;
        let changed = node.issuer.forged_with_changed_claims(&good, |claims| {
            claims["kubernetes.io"]["namespace"] = "kube-system".into();
        });
        refused(node, &volume, set(wrap(&changed)), denied, &["signature"]).await;
        refused(node, &volume, set(wrap("not.a.token")), denied, &["malformed"]).await;
        refused(node, &volume, set("{".to_owned()), Code::InvalidArgument, &[TOKENS]).await;
    });
}

fn wrap(token: &str) -> String {
    format!(r#"{{"{AUDIENCE}":{{"token":"{token}","expirationTimestamp":"2036-01-01T00:00:00Z"}}}}"#)
}

#[test]
fn what_a_pods_author_can_write_proves_nothing() {
    on_node("what_a_pods_author_can_write_proves_nothing", async |node| {
        node.start().await;
        let volume = node.volume("shop", "frontend", "web-1");
        node.kubelet.prepare(&volume).unwrap();
        let invalid = Code::InvalidArgument;

        // volumeAttributes with the token's key, beside the real one, and alone.
        let mine = node.tokens(&volume);
        let beside = mine.clone();
        refused(
            node,
            &volume,
            |r| drop(r.volume_context.insert(TOKENS.into(), beside)),
            invalid,
            &["forged"],
        )
        .await;
        let alone = |r: &mut NodePublishVolumeRequest| {
            r.secrets.clear();
            r.volume_context.insert(TOKENS.into(), mine);
        };
        refused(node, &volume, alone, invalid, &["serviceAccountTokenInSecrets"]).await;
        refused(node, &volume, |r| r.secrets.clear(), invalid, &["missing", "tokenRequests"]).await;

        // podInfoOnMount: false lets the author write these.
        for (key, value) in [
            ("csi.storage.k8s.io/pod.name", "db-1"),
            ("csi.storage.k8s.io/pod.namespace", "bank"),
            ("csi.storage.k8s.io/serviceAccount.name", "admin"),
        ] {
            let change =
                |r: &mut NodePublishVolumeRequest| drop(r.volume_context.insert(key.into(), value.into()));
            refused(node, &volume, change, Code::PermissionDenied, &[key, value]).await;
        }
        let other = uuid_of("other");
        let change = |r: &mut NodePublishVolumeRequest| {
            drop(r.volume_context.insert("csi.storage.k8s.io/pod.uid".into(), other))
        };
        refused(node, &volume, change, Code::PermissionDenied, &["pod.uid"]).await;

        for (key, words) in [
            ("spiffeId", ["spiffeId", "not known"]),
            ("csi.storage.k8s.io/node.name", ["node.name", "reserved"]),
        ] {
            let change =
                |r: &mut NodePublishVolumeRequest| drop(r.volume_context.insert(key.into(), "x".into()));
            refused(node, &volume, change, invalid, &words).await;
        }
        let change = |r: &mut NodePublishVolumeRequest| drop(r.secrets.insert("password".into(), "x".into()));
        refused(node, &volume, change, invalid, &["password"]).await;
    });
}

#[test]
fn a_republish_cannot_forge_either() {
    on_node("a_republish_cannot_forge_either", async |node| {
        node.start().await;
        let volume = node.volume("shop", "frontend", "web-1");
        node.publish(&volume).await;
        let view = node.view(&volume);
        let before = leaf(&fetch(&view).await);
        // The CSIDriver object was patched under a running pod: now the author's values arrive.
        let mut request = node.kubelet.publish_request(&volume, Some(&node.tokens(&volume)));
        request.volume_context.insert("csi.storage.k8s.io/serviceAccount.name".into(), "admin".into());
        let status = node.kubelet.publish_raw(request).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{}", status.message());
        assert_eq!(leaf(&fetch(&view).await), before, "the volume was disturbed");
        assert_eq!(fetch(&view).await.spiffe_id().to_string(), "spiffe://example.org/ns/shop/sa/frontend");
    });
}

#[test]
fn the_same_volume_with_other_parameters_is_refused() {
    on_node("the_same_volume_with_other_parameters_is_refused", async |node| {
        node.start().await;
        let volume = node.volume("shop", "frontend", "web-1");
        node.publish(&volume).await;
        let view = node.view(&volume);
        let before = leaf(&fetch(&view).await);
        for (other, field) in [
            (PodVolume { namespace: "bank".into(), ..volume.clone() }, "pod.namespace"),
            (PodVolume { pod_name: "web-2".into(), ..volume.clone() }, "pod.name"),
            (PodVolume { service_account: "admin".into(), ..volume.clone() }, "serviceAccount.name"),
            (PodVolume { volume_id: "csi-other".into(), ..volume.clone() }, "volume_id"),
        ] {
            // With a genuine token: only the difference counts.
            let status = node.kubelet.publish(&other, Some(&node.tokens(&other))).await.unwrap_err();
            assert_eq!(status.code(), Code::AlreadyExists, "{}", status.message());
            assert!(status.message().contains(field), "{}", status.message());
        }
        assert_eq!(leaf(&fetch(&view).await), before);
    });
}
