//! Mounts of other drivers, the source `directory`, and attempts that break off.

use super::*;

#[tokio::test]
async fn a_volume_is_ours_again_when_the_other_drivers_mount_is_gone() {
    let world = World::new().await;
    world.publish("frontend").await.unwrap();
    world.answers.send(Answer::Sign).unwrap();
    world.until("the identity", || world.identity().is_some()).await;
    let status = || world.volumes.get_of::<Identity>(&volume()).unwrap().view().status.clone();
    let before = status();
    assert!(matches!(before.content, Content::Ready { .. }) && before.serving);
    std::fs::write(world.dir.path().join("foreign"), "").unwrap();
    world.publish("frontend").await.unwrap();
    assert_eq!(status().content, Content::External);
    std::fs::remove_file(world.dir.path().join("foreign")).unwrap();
    // The kubelet's next republish, with the same token as before.
    world.publish("frontend").await.unwrap();
    assert_eq!(status(), before);
    assert!(world.volumes.metrics.encode().unwrap().contains("state=\"ready\"} 1"));
    // One that was never ours before comes to its identity, too.
    let (mut request, claims) = request("frontend");
    request.volume.name = "later".parse().unwrap();
    let workload = crate::csi::request::bind(&request, &claims, "node-1").unwrap();
    let token = DatedToken::new(Token::new("t".to_owned()), &claims);
    std::fs::write(world.dir.path().join("foreign"), "").unwrap();
    world.volumes.publish(&request, workload.clone(), token.clone()).await.unwrap();
    std::fs::remove_file(world.dir.path().join("foreign")).unwrap();
    world.volumes.publish(&request, workload, token).await.unwrap();
    world.answers.send(Answer::Sign).unwrap();
    let ready = || {
        let entry = world.volumes.get_of::<Identity>(&request.volume).unwrap();
        let view = entry.view();
        view.status.serving && matches!(view.status.content, Content::Ready { .. })
    };
    world.until("the identity", ready).await;
}

#[tokio::test]
async fn a_directory_volume_with_other_parameters_is_refused() {
    let world = World::new().await;
    let (mut request, _) = request("frontend");
    request.volume.name = "shared".parse().unwrap();
    world.volumes.publish_directory(&request).await.unwrap();
    world.volumes.publish_directory(&request).await.unwrap();
    let mut other = request.clone();
    other.parameters = Parameters([9; 32]);
    let result = world.volumes.publish_directory(&other).await;
    assert!(matches!(result, Err(VolumeError::Conflict { .. })), "{result:?}");
    world.volumes.publish_directory(&request).await.unwrap();
    // A new volume may be anything.
    world.volumes.unpublish(&request.volume).await.unwrap();
    world.volumes.publish_directory(&other).await.unwrap();
}

/// A volume keeps its kind while it lives; where the mount is gone the next publish decides.
#[tokio::test]
async fn a_volume_changes_its_kind_only_where_nothing_of_the_former_is_left() {
    let world = World::new().await;
    let (request, claims) = request("frontend");
    let workload = crate::csi::request::bind(&request, &claims, "node-1").unwrap();
    let token = DatedToken::new(Token::new("t".to_owned()), &claims);
    let kind = || match world.volumes.get(&request.volume).unwrap() {
        AnyEntry::Identity(_) => "identity",
        AnyEntry::Directory(_) => "directory",
    };
    world.volumes.publish_directory(&request).await.unwrap();
    let before = world.volumes.get_of::<crate::volumes::directory::Directory>(&request.volume).unwrap();
    // The source is `authority` now, and the mount is still there.
    std::fs::write(world.dir.path().join("foreign"), "").unwrap();
    world.volumes.publish(&request, workload.clone(), token.clone()).await.unwrap();
    assert_eq!(kind(), "directory");
    // It is gone: the socket is made, and nothing of the former entry lives on.
    std::fs::remove_file(world.dir.path().join("foreign")).unwrap();
    world.volumes.publish(&request, workload, token).await.unwrap();
    assert_eq!(kind(), "identity");
    assert!(before.slot.lock().await.gone && before.slot.lock().await.place.is_none());
    // And the other way round: what has an identity keeps it.
    world.volumes.publish_directory(&request).await.unwrap();
    assert_eq!(kind(), "identity");
    world.volumes.unpublish(&request.volume).await.unwrap();
    assert!(world.volumes.all().is_empty() && world.volumes.options.tenants.is_empty());
}

#[tokio::test]
async fn an_attempt_that_breaks_off_is_followed_by_the_next() {
    let world = World::new().await;
    world.publish("frontend").await.unwrap();
    world.answers.send(Answer::Panic).unwrap();
    world.until("the failure", || !world.failure().is_empty()).await;
    world.answers.send(Answer::Sign).unwrap();
    world.until("the identity", || world.identity().is_some()).await;
    assert_eq!(world.failure(), "");
    // Where nothing catches a panic in between, too.
    let entry = world.volumes.get_of::<Identity>(&volume()).unwrap();
    entry.view().signing = true;
    let broken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _under_way = schedule::UnderWay(&world.volumes.schedule, &entry);
        std::panic::resume_unwind(Box::new("as the test wants it"));
    }));
    assert!(broken.is_err());
    let view = entry.view();
    assert!(!view.signing && view.due.is_some() && view.failures == 1, "it counts as under way for ever");
}

/// A restore that broke off has left facts and a due date; the next one finds that the kubelet has taken the
/// directory away.
#[tokio::test]
async fn nothing_is_due_for_a_volume_that_went_between_two_restores() {
    let world = World::new().await;
    world.publish("frontend").await.unwrap();
    let entry = world.volumes.get_of::<Identity>(&volume()).unwrap();
    world.until("a request to the authority", || entry.view().signing).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let serving = entry.slot.lock().await.state.serving.take();
    serving.unwrap().stop().await;
    std::fs::write(world.dir.path().join("gone"), "").unwrap();
    let _ = world.volumes.restore().await;
    assert!(world.volumes.get_of::<Identity>(&volume()).is_none(), "it is known still");
    assert!(entry.view().signing, "the attempt of before is not under way any more");
    world.answers.send(Answer::Sign).unwrap();
    world.until("the end of the attempt", || !entry.view().signing).await;
    assert!(entry.view().due.is_none(), "it would be tried again without end");
}

#[tokio::test]
async fn a_volume_that_goes_while_all_are_brought_back_stays_gone() {
    let world = World::new().await;
    world.publish("frontend").await.unwrap();
    world.answers.send(Answer::Sign).unwrap();
    world.until("the identity", || world.identity().is_some()).await;
    // An agent that has just started has scanned and read; then the kubelet's call comes in between.
    world.volumes.entries().clear();
    world.volumes.restored.store(false, Ordering::Release);
    let found = world.volumes.mounter.inspect(&volume(), LONG).await.unwrap().unwrap();
    let mut records = restore::recall_all(&world.volumes.state().unwrap(), &[volume()]);
    world.volumes.unpublish(&volume()).await.unwrap();
    let back = world.volumes.bring_back(found, records.remove(&volume())).await;
    assert!(matches!(back, Ok(false)), "{:?}", back.err());
    assert!(world.volumes.all_of::<Identity>().is_empty(), "key and token of a pod that is gone");
    assert!(!world.dir.path().join("id").exists(), "its socket is there again");
    assert!(world.volumes.state().unwrap().list().unwrap().is_empty());
    // The next pod of that name comes as usual.
    world.volumes.restore().await.unwrap();
    world.publish("database").await.unwrap();
    world.answers.send(Answer::Sign).unwrap();
    world.until("the identity", || world.identity().is_some()).await;
}
