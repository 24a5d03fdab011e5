//! When something runs out or stands still: a clear error, nothing changed, and deletion goes on.

use rustix::process::Signal;
use tonic::Code;

use super::harness::*;

#[test]
fn without_descriptors_publish_fails_clearly_and_unpublish_works() {
    on_node("without_descriptors_publish_fails_clearly_and_unpublish_works", async |node| {
        node.start_mounter();
        node.start_agent_with_descriptors(72);
        node.register().await;
        let mut published = Vec::new();
        let status = loop {
            let next = node.volume("shop", "frontend", &format!("web-{}", published.len()));
            node.kubelet.prepare(&next).unwrap();
            match node.kubelet.publish(&next, Some(&node.tokens(&next))).await {
                Ok(()) => published.push(next),
                Err(status) => break status,
            }
            assert!(published.len() < 72, "descriptors out of nothing");
        };
        assert_eq!(status.code(), Code::ResourceExhausted, "{}", status.message());
        assert!(status.message().contains("descriptor"), "{}", status.message());

        // The pods take every descriptor that is left, and want more.
        let view = node.view(&published[0]);
        let mut open = Vec::new();
        for _ in 0..100 {
            let connect = tokio::net::UnixStream::connect(view.join("spire-agent.sock"));
            if let Ok(Ok(stream)) = tokio::time::timeout(std::time::Duration::from_millis(200), connect).await
            {
                open.push(stream);
            }
        }
        // Deletion goes on, and then there is room again.
        for volume in &published {
            node.kubelet.tear_down(volume).await.unwrap();
        }
        let again = node.volume("shop", "frontend", "again");
        node.publish(&again).await;
        let view = node.view(&again);
        fetch(&view).await;
    });
}

#[test]
fn with_a_full_state_directory_publish_fails_clearly_and_the_rest_goes_on() {
    on_node("with_a_full_state_directory_publish_fails_clearly_and_the_rest_goes_on", async |node| {
        node.start().await;
        let volume = node.volume("shop", "frontend", "web-1");
        node.publish(&volume).await;
        let view = node.view(&volume);
        let before = leaf(&fetch(&view).await);
        let state = node.kubelet.root().join("plugins/seamount.dev/state");
        let filler = state.join("filler");
        let mut chunk = 16 << 20;
        // Until not one byte more fits.
        let mut file = std::fs::File::create(&filler).unwrap();
        while chunk > 0 {
            use std::io::Write as _;
            match file.write(&vec![1; chunk]) {
                Ok(count) if count > 0 => {}
                _ => chunk /= 2,
            }
        }
        let next = node.volume("shop", "frontend", "web-2");
        node.kubelet.prepare(&next).unwrap();
        let status = node.kubelet.publish(&next, Some(&node.tokens(&next))).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{}", status.message());
        assert!(status.message().contains("full"), "{}", status.message());
        assert_eq!(leaf(&fetch(&view).await), before);
        node.kubelet.tear_down(&volume).await.unwrap();
        drop(file);
        std::fs::remove_file(&filler).unwrap();
        node.kubelet.publish(&next, Some(&node.tokens(&next))).await.unwrap();
        let view = node.view(&next);
        fetch(&view).await;
    });
}

#[test]
fn a_mounter_that_stands_still_answers_too_late() {
    on_node("a_mounter_that_stands_still_answers_too_late", async |node| {
        node.start().await;
        let volume = node.volume("shop", "frontend", "web-1");
        node.publish(&volume).await;
        let view = node.view(&volume);
        let before = leaf(&fetch(&view).await);
        let (late, next) = (node.volume("shop", "late", "web-2"), node.volume("shop", "next", "web-3"));
        node.kubelet.prepare(&late).unwrap();
        node.kubelet.prepare(&next).unwrap();

        node.mounter.as_mut().unwrap().signal(Signal::STOP).unwrap();
        let status = node.kubelet.publish(&late, Some(&node.tokens(&late))).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{}", status.message());
        assert!(status.message().contains("did not answer"), "{}", status.message());
        // Nothing else stands still.
        assert_eq!(node.get("/livez").await.unwrap().0, 200);
        assert_eq!(leaf(&fetch(&view).await), before);
        node.mounter.as_mut().unwrap().signal(Signal::CONT).unwrap();

        // The late listener is thrown away, and never becomes the next volume's.
        node.kubelet.publish(&next, Some(&node.tokens(&next))).await.unwrap();
        let next_view = node.view(&next);
        assert_eq!(fetch(&next_view).await.spiffe_id().to_string(), "spiffe://example.org/ns/shop/sa/next");
        node.agent().wait_for_log(LONG, "answered too late").unwrap();
        node.kubelet.publish(&late, Some(&node.tokens(&late))).await.unwrap();
        let late_view = node.view(&late);
        assert_eq!(fetch(&late_view).await.spiffe_id().to_string(), "spiffe://example.org/ns/shop/sa/late");
        assert_eq!(leaf(&fetch(&view).await), before);
    });
}

#[test]
fn a_name_that_somebody_else_has_registered_is_told() {
    use seamount_proto::registration::RegistrationStatus;
    use seamount_proto::registration::registration_client::RegistrationClient;

    on_node("a_name_that_somebody_else_has_registered_is_told", async |node| {
        node.start().await;
        let socket = node.kubelet.root().join("plugins_registry").join(format!("{DRIVER}-reg.sock"));
        let endpoint = tonic::transport::Endpoint::try_from(format!("unix://{}", socket.display())).unwrap();
        let mut kubelet = RegistrationClient::new(endpoint.connect().await.unwrap());
        let error = "plugin name csi.spiffe.io is already in use".to_owned();
        kubelet
            .notify_registration_status(RegistrationStatus { plugin_registered: false, error })
            .await
            .unwrap();
        node.until("the word", async || {
            node.get("/readyz")
                .await
                .is_some_and(|(code, text)| code == 503 && text.contains("already in use"))
        })
        .await;
        assert_eq!(node.get("/livez").await.unwrap().0, 200);
        // It is remembered, and overruled by the next word.
        node.agent.take().unwrap().crash().unwrap();
        node.start_agent();
        node.until("the word again", async || {
            node.get("/readyz")
                .await
                .is_some_and(|(code, text)| code == 503 && text.contains("already in use"))
        })
        .await;
        node.register().await;
    });
}

#[test]
fn a_log_that_nobody_reads_keeps_nobody_waiting() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    on_node("a_log_that_nobody_reads_keeps_nobody_waiting", async |node| {
        let pipes = node.path("pipes");
        std::fs::create_dir(&pipes).unwrap();
        let held = ["mounter", "agent"].map(|name| {
            let path = pipes.join(format!("{name}.log"));
            mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
            // fifo(7): opened in both ways it waits for nobody.
            std::fs::File::options().read(true).write(true).open(&path).unwrap()
        });
        let full = |pipe: &std::fs::File| {
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            poll(&mut [PollFd::new(pipe, PollFlags::OUT)], Some(&now)).unwrap() == 0
        };
        node.mounter = Some(node.mounter(RUN).log_in(&pipes).start().unwrap());
        node.agent = Some(node.second_agent(RUN, &node.http).log_in(&pipes).start().unwrap());
        node.register().await;
        let mut cycles = 0;
        while !held.iter().all(full) {
            let volume = node.volume("shop", "frontend", &format!("web-{cycles}"));
            node.publish(&volume).await;
            node.kubelet.tear_down(&volume).await.unwrap();
            cycles += 1;
            assert!(cycles < 20_000, "64 KB are not full");
        }
        // Both go on, and say how much is missing.
        for i in 0..20 {
            let volume = node.volume("shop", "frontend", &format!("late-{i}"));
            node.publish(&volume).await;
            let view = node.view(&volume);
            fetch(&view).await;
            node.kubelet.tear_down(&volume).await.unwrap();
        }
        node.ready().await;
        let (_, metrics) = node.get("/metrics").await.unwrap();
        let lost = metrics.lines().find_map(|l| l.strip_prefix("seamount_log_lines_lost_total "));
        assert!(lost.is_some_and(|n| n.parse::<u64>().unwrap() > 0), "{lost:?}");
        // Their logs are pipes: nothing may read them afterwards.
        (node.agent, node.mounter) = (None, None);
    });
}
