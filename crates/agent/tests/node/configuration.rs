//! What is broken elsewhere never stands in the way of a deletion, and its repair needs no restart.

use tonic::Code;

use super::harness::*;

#[test]
fn without_authority_a_pod_starts_and_its_identity_comes_with_the_repair() {
    on_node("without_authority_a_pod_starts_and_its_identity_comes_with_the_repair", async |node| {
        let root = node.path("secret");
        node.configure(&node.yaml_with("1h", &root));
        node.start_mounter();
        node.start_agent();
        node.kubelet.register(LONG).await.unwrap();
        node.until("an answer", async || node.get("/readyz").await.is_some()).await;
        let (code, text) = node.get("/readyz").await.unwrap();
        assert_eq!(code, 503, "{text}");
        assert!(text.contains("tls.crt"), "{text}");
        assert_eq!(node.get("/livez").await.unwrap().0, 200);

        let (volume, doomed) =
            (node.volume("shop", "frontend", "web-1"), node.volume("shop", "frontend", "web-2"));
        node.publish(&volume).await;
        node.publish(&doomed).await;
        let view = node.view(&volume);
        // A stream waits for the identity.
        let waiting = {
            let view = view.clone();
            tokio::spawn(async move { try_fetch(&view).await })
        };
        node.kubelet.tear_down(&doomed).await.unwrap();
        node.until("an abnormal volume", async || {
            let condition = node.kubelet.stats(&volume).await.unwrap().volume_condition.unwrap();
            condition.abnormal && condition.message.contains("tls.crt")
        })
        .await;

        std::fs::rename(node.path("root"), &root).unwrap();
        node.ready().await;
        let id = "spiffe://example.org/ns/shop/sa/frontend";
        node.until("the identity", async || {
            try_fetch(&view).await.is_ok_and(|svid| svid.spiffe_id().to_string() == id)
        })
        .await;
        // Held and answered, or held and told to come again: never that there is none.
        if let Err(e) = waiting.await.unwrap() {
            assert!(!e.contains("PermissionDenied") && !e.contains("no identity issued"), "{e}");
        }
        node.until("a healthy volume", async || {
            !node.kubelet.stats(&volume).await.unwrap().volume_condition.unwrap().abnormal
        })
        .await;
    });
}

#[test]
fn pods_are_deleted_under_a_broken_configuration() {
    on_node("pods_are_deleted_under_a_broken_configuration", async |node| {
        node.start().await;
        let (volume, other) =
            (node.volume("shop", "frontend", "web-1"), node.volume("shop", "frontend", "web-2"));
        node.publish(&volume).await;
        node.publish(&other).await;
        let kept = node.volume("shop", "frontend", "web-0");
        node.publish(&kept).await;
        let of_kept = node.view(&kept);
        let before = leaf(&fetch(&of_kept).await);

        // While running: the last good configuration stays.
        node.configure("trustDomain: [broken\n");
        node.until("the complaint", async || {
            node.get("/readyz").await.is_some_and(|(code, text)| code == 503 && text.contains("last good"))
        })
        .await;
        node.kubelet.tear_down(&volume).await.unwrap();
        node.kubelet.publish(&other, Some(&node.tokens(&other))).await.unwrap();

        // After a restart there is no good one: only publish waits. The flags carry the rest.
        node.agent.take().unwrap().crash().unwrap();
        node.configure(&format!(
            "kubeletRoot: {}\nmounterSocket: {}\nnoSuchField: 1\n",
            node.kubelet.root().display(),
            node.path("run/mounter.sock").display()
        ));
        node.start_agent();
        node.agent().wait_for_log(LONG, "volumes restored").unwrap();
        assert_eq!(node.get("/livez").await.unwrap().0, 200);
        assert!(node.get("/readyz").await.unwrap().1.contains("noSuchField"));
        let third = node.volume("shop", "frontend", "web-3");
        node.kubelet.prepare(&third).unwrap();
        let status = node.kubelet.publish(&third, Some(&node.tokens(&third))).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{}", status.message());
        assert!(status.message().contains("configuration"), "{}", status.message());
        node.kubelet.stats(&other).await.unwrap();
        // Nothing says what is genuine, so what is recorded waits.
        let refused = try_fetch(&of_kept).await.unwrap_err();
        assert!(refused.contains("Unavailable"), "{refused}");
        node.kubelet.tear_down(&other).await.unwrap();

        // The repair needs no restart.
        node.configure(&node.yaml());
        node.until("a publish", async || {
            node.kubelet.publish(&third, Some(&node.tokens(&third))).await.is_ok()
        })
        .await;
        let view = node.view(&third);
        fetch(&view).await;
        assert_eq!(leaf(&fetch(&of_kept).await), before, "what was recorded was lost");
    });
}

#[test]
fn without_the_issuers_keys_publish_waits_and_unpublish_does_not() {
    on_node("without_the_issuers_keys_publish_waits_and_unpublish_does_not", async |node| {
        let (jwks, away) = (node.path("etc/jwks.json"), node.path("etc/away.json"));
        std::fs::rename(&jwks, &away).unwrap();
        node.start_mounter();
        node.start_agent();
        node.kubelet.register(LONG).await.unwrap();
        let volume = node.volume("shop", "frontend", "web-1");
        node.kubelet.prepare(&volume).unwrap();
        let status = node.kubelet.publish(&volume, Some(&node.tokens(&volume))).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{}", status.message());
        node.kubelet.unpublish(&volume).await.unwrap();
        std::fs::rename(&away, &jwks).unwrap();
        node.until("a publish", async || {
            node.kubelet.publish(&volume, Some(&node.tokens(&volume))).await.is_ok()
        })
        .await;
    });
}

#[test]
fn a_secret_that_disappears_is_reported_and_takes_nothing_back() {
    on_node("a_secret_that_disappears_is_reported_and_takes_nothing_back", async |node| {
        node.start().await;
        let (root, away) = (node.path("root"), node.path("away"));
        std::fs::rename(&root, &away).unwrap();
        node.until("the complaint", async || {
            node.get("/readyz").await.is_some_and(|(code, text)| code == 503 && text.contains("tls.crt"))
        })
        .await;
        assert_eq!(node.get("/livez").await.unwrap().0, 200);
        let volume = node.volume("shop", "frontend", "web-1");
        node.publish(&volume).await;
        let view = node.view(&volume);
        fetch(&view).await;
        std::fs::rename(&away, &root).unwrap();
        node.ready().await;
    });
}
