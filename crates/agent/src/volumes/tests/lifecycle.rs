//! Publish, unpublish and restore of identity volumes, and the identities that come late.

use super::*;

#[tokio::test]
async fn a_publish_does_not_wait_for_the_authority() {
    let world = World::new().await;
    world.publish("frontend").await.unwrap();
    assert_eq!(world.identity(), None);
    world.answers.send(Answer::Sign).unwrap();
    world.until("the identity", || world.identity().is_some()).await;
    assert_eq!(world.identity().unwrap(), "spiffe://example.org/ns/shop/sa/frontend");
}

#[tokio::test]
async fn a_late_certificate_never_lands_on_a_newer_incarnation() {
    let world = World::new().await;
    world.publish("frontend").await.unwrap();
    // The authority has the first request; the pod goes and another one's volume comes in its place.
    let entry = world.volumes.get_of::<Identity>(&volume()).unwrap();
    world.until("a request to the authority", || entry.view().signing).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    world.volumes.unpublish(&volume()).await.unwrap();
    world.publish("database").await.unwrap();
    world.answers.send(Answer::Sign).unwrap();
    world.answers.send(Answer::Sign).unwrap();
    world.until("the identity", || world.identity().is_some()).await;
    assert_eq!(world.identity().unwrap(), "spiffe://example.org/ns/shop/sa/database");
    let record = world.volumes.state().unwrap().get(&volume().pod, &volume().name).unwrap().unwrap();
    assert_eq!(
        record.identity().unwrap().svid.as_ref().unwrap().spiffe_id,
        "spiffe://example.org/ns/shop/sa/database"
    );
}

#[tokio::test]
async fn a_certificate_for_a_volume_that_is_gone_is_thrown_away() {
    let world = World::new().await;
    world.publish("frontend").await.unwrap();
    let entry = world.volumes.get_of::<Identity>(&volume()).unwrap();
    world.until("a request to the authority", || entry.view().signing).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    world.volumes.unpublish(&volume()).await.unwrap();
    world.answers.send(Answer::Sign).unwrap();
    let start = std::time::Instant::now();
    while entry.view().signing {
        assert!(start.elapsed() < LONG);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(entry.slot.lock().await.state.held.is_none(), "a key was kept for a volume that is gone");
    assert!(world.volumes.state().unwrap().list().unwrap().is_empty(), "a record was written");
    let metrics = world.volumes.metrics.encode().unwrap();
    assert!(!metrics.contains("state=\"ready\"} 1"), "it is counted: {metrics}");
}

#[tokio::test]
async fn what_the_authority_signs_is_checked() {
    let world = World::new().await;
    world.publish("frontend").await.unwrap();
    world.answers.send(Answer::OtherId).unwrap();
    world.until("the refusal", || world.failure().contains("sa/admin")).await;
    assert_eq!(world.identity(), None, "another's identity was taken");
    world.answers.send(Answer::OtherKey).unwrap();
    world.until("the refusal", || world.failure().contains("key")).await;
    assert_eq!(world.identity(), None, "a certificate for another key was taken");
    world.answers.send(Answer::Sign).unwrap();
    world.until("the identity", || world.identity().is_some()).await;
    assert_eq!(world.failure(), "");
}

#[tokio::test]
async fn nothing_is_answered_or_shown_before_it_is_recorded() {
    let world = World::new().await;
    world.publish("frontend").await.unwrap();
    // No record can be written any more.
    std::fs::remove_dir_all(world.dir.path().join("state")).unwrap();
    world.answers.send(Answer::Sign).unwrap();
    world.until("the failure", || world.failure().contains("state")).await;
    assert_eq!(world.identity(), None, "shown without a record");
    let (mut request, claims) = request("database");
    request.volume.name = "other".parse().unwrap();
    let workload = crate::csi::request::bind(&request, &claims, "node-1").unwrap();
    let result =
        world.volumes.publish(&request, workload, DatedToken::new(Token::new("t".to_owned()), &claims)).await;
    assert!(matches!(result, Err(VolumeError::State(_))), "{result:?}");
    // And the way out stays open.
    world.volumes.unpublish(&volume()).await.unwrap();
}

#[tokio::test]
async fn publish_and_unpublish_of_one_volume_exclude_each_other() {
    let world = World::new().await;
    for _ in 0..100 {
        world.answers.send(Answer::Sign).unwrap();
    }
    let mut work = tokio::task::JoinSet::new();
    for i in 0..60 {
        let volumes = Arc::clone(&world.volumes);
        work.spawn(async move {
            if i % 3 == 2 {
                volumes.unpublish(&volume()).await.unwrap();
            } else {
                let (request, claims) = request("frontend");
                let workload = crate::csi::request::bind(&request, &claims, "node-1").unwrap();
                let token = DatedToken::new(Token::new(format!("token {i}")), &claims);
                volumes.publish(&request, workload, token).await.unwrap();
            }
        });
    }
    while let Some(done) = work.join_next().await {
        done.unwrap();
    }
    world.volumes.unpublish(&volume()).await.unwrap();
    assert!(world.volumes.all_of::<Identity>().is_empty());
    assert!(world.volumes.state().unwrap().list().unwrap().is_empty(), "a record is left over");
    // It comes back as if nothing had been.
    world.publish("frontend").await.unwrap();
    world.until("the identity", || world.identity().is_some()).await;
    let socket = tokio::net::UnixStream::connect(world.dir.path().join("id")).await;
    assert!(socket.is_ok(), "{socket:?}");
}

#[tokio::test]
async fn a_publish_before_the_records_are_read_waits() {
    let world = World::new().await;
    world.volumes.restored.store(false, Ordering::Release);
    let result = world.publish("frontend").await;
    assert!(matches!(result, Err(VolumeError::NoState(_))), "{result:?}");
    assert!(world.volumes.all_of::<Identity>().is_empty());
    world.volumes.unpublish(&volume()).await.unwrap();
}

#[tokio::test]
async fn a_token_that_could_not_be_recorded_is_not_taken_for_one_that_was() {
    let world = World::new().await;
    world.publish("frontend").await.unwrap();
    let (request, claims) = request("frontend");
    let workload = crate::csi::request::bind(&request, &claims, "node-1").unwrap();
    let publish = async || {
        let token = DatedToken::new(Token::new("a newer token".to_owned()), &claims);
        world.volumes.publish(&request, workload.clone(), token).await
    };
    let state = world.dir.path().join("state");
    std::fs::remove_dir_all(&state).unwrap();
    for _ in 0..2 {
        let result = publish().await;
        assert!(matches!(result, Err(VolumeError::State(_))), "{result:?}");
    }
    std::fs::create_dir(&state).unwrap();
    world.volumes.set_state(Ok(Arc::new(StateDir::new(std::fs::File::open(&state).unwrap().into()))));
    publish().await.unwrap();
    let record = world.volumes.state().unwrap().get(&volume().pod, &volume().name).unwrap().unwrap();
    assert_eq!(record.identity().unwrap().token.clone().unwrap(), Token::new("a newer token".to_owned()));
}

/// The end of a mounter cuts a restore short; the next one has no listener of what is back already.
#[tokio::test]
async fn a_restore_that_goes_on_gives_the_mounter_what_is_served() {
    let world = World::new().await;
    world.publish("frontend").await.unwrap();
    std::fs::write(world.dir.path().join("anew"), "").unwrap();
    world.volumes.restored.store(false, Ordering::Release);
    world.volumes.restore().await.unwrap();
    assert!(world.dir.path().join("stored").exists(), "the mounter would bind over a socket in use");
}

#[tokio::test]
async fn another_drivers_unpublish_takes_no_volume_away_while_records_are_read() {
    let world = World::new().await;
    world.publish("frontend").await.unwrap();
    let other = Volume { driver: "b.example.org".parse().unwrap(), ..volume() };
    let serving = world.volumes.get_of::<Identity>(&volume()).unwrap().slot.lock().await.state.serving.take();
    serving.unwrap().stop().await;
    world.volumes.entries().clear();
    world.volumes.restored.store(false, Ordering::Release);
    let refused = world.volumes.unpublish(&other).await.unwrap_err();
    assert!(matches!(&refused, VolumeError::Mounter(e) if e.is(Fault::NotOurs)), "{refused}");
    world.volumes.restore().await.unwrap();
    let entry = world.volumes.get_of::<Identity>(&volume()).expect("it was taken away");
    assert!(entry.slot.lock().await.state.serving.is_some());
    assert!(world.volumes.state().unwrap().get(&volume().pod, &volume().name).unwrap().is_some());
}

#[tokio::test]
async fn a_wrong_id_takes_no_volume_away() {
    let world = World::new().await;
    world.publish("frontend").await.unwrap();
    world.answers.send(Answer::Sign).unwrap();
    world.until("the identity", || world.identity().is_some()).await;
    let wrong = Volume { id: "csi-2".parse().unwrap(), ..volume() };
    let result = world.volumes.unpublish(&wrong).await;
    assert!(matches!(&result, Err(VolumeError::Mounter(e)) if e.is(Fault::NotOurs)), "{result:?}");
    assert!(world.identity().is_some());
    assert!(world.volumes.state().unwrap().get(&volume().pod, &volume().name).unwrap().is_some());
    tokio::net::UnixStream::connect(world.dir.path().join("id")).await.unwrap();
    // Where the kubelet has no record any more, the path alone is enough.
    world.volumes.mounter.unpublish(&volume()).await.unwrap();
    world.volumes.unpublish(&wrong).await.unwrap();
    assert!(world.volumes.all_of::<Identity>().is_empty());
    assert!(world.volumes.state().unwrap().list().unwrap().is_empty());
}

/// The kubelet unmounts before it mounts again, but a static pod's successor has the same UID and volume
/// name.
#[tokio::test]
async fn a_publish_finishes_an_unpublish_that_the_mounter_did_not_carry_out() {
    let world = World::new().await;
    let (stuck, socket) = (world.dir.path().join("stuck"), world.dir.path().join("id"));
    for account in ["frontend", "admin"] {
        world.publish(account).await.unwrap();
        world.answers.send(Answer::Sign).unwrap();
        world.until("the identity", || world.identity().is_some()).await;
        assert_eq!(world.identity().unwrap(), format!("spiffe://example.org/ns/shop/sa/{account}"));
        let mut client = tokio::net::UnixStream::connect(&socket).await.unwrap();
        std::fs::write(&stuck, "").unwrap();
        world.volumes.unpublish(&volume()).await.unwrap_err();
        assert_eq!(tokio::io::AsyncReadExt::read(&mut client, &mut [0; 1]).await.unwrap(), 0);
        assert!(tokio::net::UnixStream::connect(&socket).await.is_err());
        // No client can be served at the old socket any more.
        world.publish(account).await.unwrap_err();
        std::fs::remove_file(&stuck).unwrap();
    }
    // An agent that starts now finds the volume, and no record of it.
    world.volumes.restored.store(false, Ordering::Release);
    assert_eq!(
        world.volumes.restore().await.unwrap(),
        restore::Restored { without: 1, ..Default::default() }
    );
    tokio::net::UnixStream::connect(&socket).await.unwrap();
}

#[tokio::test]
async fn one_volume_that_cannot_be_looked_at_keeps_no_other_from_coming_back() {
    let world = World::new().await;
    world.publish("frontend").await.unwrap();
    let state = world.volumes.state().unwrap();
    let mut record = state.get(&volume().pod, &volume().name).unwrap().unwrap();
    record.volume.name = "broken".parse().unwrap();
    state.put(&record).unwrap();
    world.volumes.restored.store(false, Ordering::Release);
    world.volumes.restore().await.unwrap();
    assert!(world.volumes.restored.load(Ordering::Acquire));
    assert!(state.get(&record.volume.pod, &record.volume.name).unwrap().is_some(), "its record is not lost");
}

#[tokio::test]
async fn a_dead_source_directory_is_reported_until_the_pod_goes() {
    let world = World::new().await;
    let (mut request, _) = request("frontend");
    request.volume.name = "dead".parse().unwrap();
    let volume = request.volume.clone();
    let reasons = async |volumes: &Volumes| {
        let look = volumes.look(&volume).await.unwrap();
        look.conditions.iter().map(|c| c.reason).collect::<Vec<_>>()
    };
    // The mounter binds the new one and says so once; afterwards it sees nothing wrong.
    for _ in 0..3 {
        world.volumes.publish_directory(&request).await.unwrap();
        assert_eq!(reasons(&world.volumes).await, ["SourceRecreated"]);
    }
    // An agent that comes later knows it from the record.
    world.volumes.entries().clear();
    world.volumes.restore().await.unwrap();
    assert_eq!(reasons(&world.volumes).await, ["SourceRecreated"]);
    world.volumes.unpublish(&volume).await.unwrap();
    assert!(world.volumes.state().unwrap().list().unwrap().is_empty());
}

#[tokio::test]
async fn a_volume_that_is_gone_is_not_counted_again() {
    let world = World::new().await;
    world.publish("frontend").await.unwrap();
    let entry = world.volumes.get_of::<Identity>(&volume()).unwrap();
    let counted = || world.volumes.metrics.encode().unwrap().contains("state=\"pending\"} 1");
    assert!(counted(), "{}", world.volumes.metrics.encode().unwrap());
    world.volumes.unpublish(&volume()).await.unwrap();
    assert!(!counted());
    // What an attempt to renew does at its end.
    world.volumes.count(&entry);
    assert!(!counted(), "counted for ever");
}

#[tokio::test]
async fn a_clock_that_is_set_back_postpones_no_attempt() {
    let world = World::new().await;
    world.publish("frontend").await.unwrap();
    world.answers.send(Answer::OtherId).unwrap();
    world.until("the refusal", || world.failure().contains("sa/admin")).await;
    let entry = world.volumes.get_of::<Identity>(&volume()).unwrap();
    let now = SystemTime::now();
    let later = now + Duration::from_secs(365 * 24 * 3600);
    entry.view().due = Some(later);
    world.volumes.look_back(now, now);
    assert_eq!(entry.view().due, Some(later), "the clock was not set back");
    world.answers.send(Answer::Sign).unwrap();
    world.volumes.look_back(later, now);
    world.until("the identity", || world.identity().is_some()).await;
}

/// What is due is known beforehand; but a reminder that was missed must not be the end of an identity.
#[tokio::test]
async fn what_nobody_was_reminded_of_comes_late() {
    let world = World::new().await;
    world.publish("frontend").await.unwrap();
    world.answers.send(Answer::Sign).unwrap();
    world.until("the identity", || world.identity().is_some()).await;
    let entry = world.volumes.get_of::<Identity>(&volume()).unwrap();
    let serial = || world.volumes.entries().values().next().map(|e| e.common().status.rotate_at);
    let before = serial();
    let now = SystemTime::now();
    // As the last look found it: nothing for an hour.
    *world.volumes.schedule.soonest.lock().unwrap() = now + schedule::ALL;
    entry.view().due = Some(now);
    world.answers.send(Answer::Sign).unwrap();
    world.volumes.look_at_the_clock(now);
    assert!(!entry.view().signing, "all are looked at with each tick");
    world.volumes.look_at_the_clock(now + schedule::ALL);
    assert!(entry.view().signing);
    world.until("another identity", || serial() != before).await;
    // The look before has taken note of the next one.
    assert!(*world.volumes.schedule.soonest.lock().unwrap() > now);
}
