//! Two drivers on one node, side by side, of one mounter and one agent.

use seamount_testkit::kubelet::{Event, Kubelet};
use seamount_testkit::node::NODE;
use tonic::Code;

use super::harness::*;

const OTHER: &str = "identity.seamount.dev";

/// The agent with both; the mounter with these more arguments.
fn start_both(node: &mut Node, more: &[&str]) {
    node.configure(&format!("{}drivers: [{{name: {DRIVER}}}, {{name: {OTHER}}}]\n", node.yaml()));
    node.start_mounter_with(more);
    node.start_agent();
}

/// The kubelet as it speaks to the other driver.
fn other_kubelet(node: &Node) -> Kubelet {
    Kubelet::new(node.kubelet.root(), OTHER).unwrap().with_node(NODE)
}

async fn both_registered(node: &Node) {
    node.kubelet.forget_registrations();
    node.until("both registrations", async || {
        node.kubelet.poll_registrations().await.unwrap();
        node.kubelet.registrations().len() == 2
    })
    .await;
    node.ready().await;
}

#[test]
fn two_drivers_work_side_by_side_and_survive_both_processes() {
    on_node("two_drivers_work_side_by_side_and_survive_both_processes", async |node| {
        start_both(node, &["--driver", OTHER]);
        both_registered(node).await;
        let other = other_kubelet(node);
        for (kubelet, name) in [(&node.kubelet, DRIVER), (&other, OTHER)] {
            let info = node.kubelet.registrations().into_iter().find(|info| info.driver == name).unwrap();
            assert_eq!(info.endpoint, kubelet.root().join(format!("plugins/{name}/csi.sock")));
            let mut client = kubelet.identity_client().await.unwrap();
            let plugin = client.get_plugin_info(seamount_proto::csi::GetPluginInfoRequest {}).await.unwrap();
            assert_eq!(plugin.into_inner().name, name);
            let line = format!("seamount_kubelet_registered{{driver=\"{name}\"}} 1");
            let (_, metrics) = node.get("/metrics").await.unwrap();
            assert!(metrics.lines().any(|found| found == line), "{metrics}");
        }
        let first = node.volume("shop", "frontend", "web-1");
        node.publish(&first).await;
        let second = node.volume("shop", "backend", "db-1");
        other.prepare(&second).unwrap();
        other.publish(&second, Some(&node.tokens(&second))).await.unwrap();
        let views = [node.view(&first), node.view(&second)];
        let before = [leaf(&fetch(&views[0]).await), leaf(&fetch(&views[1]).await)];
        // A call on one driver's socket touches no volume of the other, known or not.
        let unknown = node.volume("shop", "backend", "db-2");
        other.prepare(&unknown).unwrap();
        for (kubelet, volume) in [(&node.kubelet, &second), (&other, &first), (&node.kubelet, &unknown)] {
            let refused = kubelet.publish(volume, Some(&node.tokens(volume))).await.unwrap_err();
            assert!([Code::AlreadyExists, Code::InvalidArgument].contains(&refused.code()), "{refused:?}");
            let refused = kubelet.unpublish(volume).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
            assert!(refused.message().contains("of driver"), "{refused:?}");
            assert_eq!(kubelet.stats(volume).await.unwrap_err().code(), Code::NotFound);
        }
        for (view, before) in views.iter().zip(&before) {
            assert_eq!(&leaf(&fetch(view).await), before);
        }
        assert_eq!(other.health(&second).await.unwrap().health_statuses, []);
        // The agent alone comes back: the kubelet says nothing anew, for neither driver.
        node.agent = None;
        node.start_agent();
        node.ready().await;
        // Both processes die: the sockets are others, and the volumes of both come back.
        (node.agent, node.mounter) = (None, None);
        start_both(node, &["--driver", OTHER]);
        both_registered(node).await;
        for (view, before) in views.iter().zip(&before) {
            assert_eq!(&leaf(&fetch(view).await), before);
        }
        node.kubelet.tear_down(&first).await.unwrap();
        other.tear_down(&second).await.unwrap();
        other.tear_down(&unknown).await.unwrap();
    });
}

#[test]
fn one_drivers_socket_is_removed_and_only_that_driver_is_registered_again() {
    on_node("one_drivers_socket_is_removed_and_only_that_driver_is_registered_again", async |node| {
        start_both(node, &["--driver", OTHER]);
        both_registered(node).await;
        std::fs::remove_file(node.kubelet.root().join(format!("plugins_registry/{OTHER}-reg.sock"))).unwrap();
        let gone = node.kubelet.poll_registrations().await.unwrap();
        assert_eq!(gone, [Event::Deregistered { driver: OTHER.to_owned() }]);
        let why = format!("has not registered the driver {OTHER} yet");
        node.until("the agent to say which", async || {
            node.get("/readyz").await.is_some_and(|(code, text)| {
                code == 503 && text.contains(&why) && !text.contains(&format!("driver {DRIVER}"))
            })
        })
        .await;
        let mut events = Vec::new();
        node.until("the registration", async || {
            events.extend(node.kubelet.poll_registrations().await.unwrap());
            !events.is_empty()
        })
        .await;
        assert!(matches!(events.as_slice(), [Event::Registered(info)] if info.driver == OTHER), "{events:?}");
        node.ready().await;
    });
}

#[test]
fn a_driver_that_the_mounter_does_not_have_is_told_and_the_other_works() {
    on_node("a_driver_that_the_mounter_does_not_have_is_told_and_the_other_works", async |node| {
        start_both(node, &[]);
        node.kubelet.register(LONG).await.unwrap();
        node.until("the agent to say what is missing", async || {
            let ready = node.get("/readyz").await;
            ready.is_some_and(|(code, text)| {
                code == 503 && text.contains(&format!("without --driver {OTHER}"))
            })
        })
        .await;
        let volume = node.volume("shop", "frontend", "web-1");
        node.publish(&volume).await;
        let view = node.view(&volume);
        fetch(&view).await;
        // It comes with a mounter that has it.
        node.mounter = None;
        node.start_mounter_with(&["--driver", OTHER]);
        node.until("the other driver", async || {
            node.kubelet.poll_registrations().await.unwrap();
            node.kubelet.registrations().len() == 2
        })
        .await;
        node.ready().await;
        fetch(&view).await;
    });
}
