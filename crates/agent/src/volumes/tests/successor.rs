//! An agent after one that may have been hostile: what lies in the state directory is believed where it is
//! proved.

use super::*;
use crate::record::{Body, IdentityBody, Record};

/// With the identity of this service account on record.
async fn issued(account: &str) -> World {
    let world = World::new().await;
    publish_and_sign(&world, account).await;
    world
}

async fn publish_and_sign(world: &World, account: &str) {
    world.publish(account).await.unwrap();
    world.answers.send(Answer::Sign).unwrap();
    world.until("the identity", || world.identity().is_some()).await;
}

impl World {
    fn record(&self) -> Record {
        self.volumes.state().unwrap().get(&volume().pod, &volume().name).unwrap().unwrap()
    }

    /// The record with another token.
    fn with_token(&self, token: Option<Token>) -> Record {
        let record = self.record();
        let identity = IdentityBody { token, ..record.identity().unwrap().clone() };
        Record { body: Body::Identity(identity), ..record }
    }

    fn put(&self, record: &Record) {
        self.volumes.state().unwrap().put(record).unwrap();
    }

    async fn decided(&self) -> Arc<VolumeEntry<Identity>> {
        let entry = self.volumes.get_of::<Identity>(&volume()).unwrap();
        self.until("the decision", || entry.view().seen.unproved.is_none()).await;
        entry
    }

    fn serial(&self) -> Option<String> {
        let entry = self.volumes.get_of::<Identity>(&volume())?;
        let slot = entry.slot.try_lock().ok()?;
        slot.state.held.as_ref().map(|held| held.svid.serial_hex().to_owned())
    }

    /// Publishes with a token that was issued in this second.
    async fn publish_dated(&self, account: &str, second: u64) {
        let (request, claims) = request(account);
        let workload = crate::csi::request::bind(&request, &claims, "node-1").unwrap();
        let claims = Claims { issued: at(second), ..claims };
        let token = DatedToken::new(Token::new(format!("token of {account} {second}")), &claims);
        self.volumes.publish(&request, workload, token).await.unwrap();
    }
}

#[tokio::test]
async fn a_record_is_served_again_as_it_was() {
    let world = issued("frontend").await;
    let before = world.serial();
    assert_eq!(world.restart().await, restore::Restored { with_identity: 1, ..Default::default() });
    world.decided().await;
    assert_eq!(world.serial(), before);
    // Nothing else was asked for.
    world.publish("frontend").await.unwrap();
    assert_eq!(world.serial(), before, "the republish disturbed");
}

#[tokio::test]
async fn a_forged_record_yields_nothing_and_a_good_republish_wins() {
    // The SVID is genuine, the token is not: another pod's.
    let world = issued("admin").await;
    for forged in ["false of admin", "token", "x.y.z"] {
        world.put(&world.with_token(Some(Token::new(forged.to_owned()))));
        world.restart().await;
        let entry = world.decided().await;
        assert_eq!(world.identity(), None, "{forged}: served");
        assert!(entry.view().due.is_none(), "{forged}: asked for");
        assert!(matches!(world.volumes.to_show(&*entry.slot.lock().await), IdentityState::Pending));
    }
    world.publish("frontend").await.unwrap();
    assert_eq!(world.identity(), None, "the forged record's SVID");
    world.answers.send(Answer::Sign).unwrap();
    world.until("the identity", || world.identity().is_some()).await;
    assert_eq!(world.identity().unwrap(), "spiffe://example.org/ns/shop/sa/frontend");
    assert_eq!(world.record().identity().unwrap().token, Some(Token::new("token of frontend".to_owned())));
}

#[tokio::test]
async fn a_republish_wins_while_the_record_is_undecided() {
    let world = issued("admin").await;
    world.issuer.away.store(true, Ordering::Relaxed);
    world.put(&world.with_token(Some(Token::new("false of admin".to_owned()))));
    world.restart().await;
    world.publish("frontend").await.unwrap();
    let entry = world.decided().await;
    assert_ne!(world.identity().as_deref(), Some("spiffe://example.org/ns/shop/sa/admin"));
    world.answers.send(Answer::Sign).unwrap();
    world.until("the identity", || world.identity().is_some()).await;
    assert_eq!(world.identity().unwrap(), "spiffe://example.org/ns/shop/sa/frontend");
    assert!(entry.slot.lock().await.state.recalled.is_none());
}

#[tokio::test]
async fn an_svid_of_another_record_is_not_served() {
    let world = issued("admin").await;
    // A genuine token of this pod beside it.
    world.put(&world.with_token(Some(Token::new("token of frontend".to_owned()))));
    world.restart().await;
    world.decided().await;
    assert_eq!(world.identity(), None);
    world.answers.send(Answer::Sign).unwrap();
    world.until("the identity", || world.identity().is_some()).await;
    assert_eq!(world.identity().unwrap(), "spiffe://example.org/ns/shop/sa/frontend");
}

#[tokio::test]
async fn a_token_of_another_pod_proves_nothing() {
    let world = issued("admin").await;
    let mut record = world.record();
    record.volume.pod = "4f2c1a9e-0b1d-4c5e-8f70-a1b2c3d4e5f6".parse().unwrap();
    record.volume.name = "other".parse().unwrap();
    world.put(&record);
    let found = seamount_mounter_client::Found {
        volume: record.volume.clone(),
        flags: flag::IDENTITY | flag::SOCKET,
        bytes: 0,
        inodes: 0,
        mounts: 0,
        dead_subpaths: String::new(),
        listener: None,
    };
    let mut records =
        restore::recall_all(&world.volumes.state().unwrap(), std::slice::from_ref(&record.volume));
    assert!(world.volumes.bring_back(found, records.remove(&record.volume)).await.is_ok_and(|with| with));
    let entry = world.volumes.get_of::<Identity>(&record.volume).unwrap();
    world.until("the decision", || entry.view().seen.unproved.is_none()).await;
    assert!(entry.slot.lock().await.state.held.is_none() && entry.view().due.is_none());
}

#[tokio::test]
async fn an_svid_under_a_root_that_was_replaced_while_there_was_no_agent_is_not_served() {
    let mut world = issued("frontend").await;
    let entry = world.volumes.get_of::<Identity>(&volume()).unwrap();
    entry.slot.lock().await.state.serving.take().unwrap().stop().await;
    world.volumes.entries().clear();
    world.replace_root().await;
    world.restart().await;
    world.decided().await;
    assert_eq!(world.identity(), None, "clients that trust the new root alone would refuse it");
    world.answers.send(Answer::Sign).unwrap();
    world.until("an identity under the new root", || world.is_trusted()).await;
}

/// The same root, other IDs.
fn with_other_template(world: &World) -> Signer {
    let Source::Authority(signer) = world.source.borrow().clone() else { panic!("no authority") };
    let template = "spiffe://{trustDomain}/pod/{podUid}";
    let template = IdTemplate::parse(template, &"example.org".parse().unwrap()).unwrap();
    Signer { template: Arc::new(template), ..signer }
}

#[tokio::test]
async fn another_template_is_in_force_at_once_and_after_a_restart() {
    let world = issued("frontend").await;
    world.source.send_replace(Source::Authority(with_other_template(&world)));
    // The simulated authority knows the old one only, so that what is asked for is refused, which is how it
    // is seen.
    world.answers.send(Answer::Sign).unwrap();
    world.until("another ID to be asked for", || world.failure().contains("expected")).await;
    assert!(world.identity().is_some(), "a running pod keeps what it has meanwhile");
    world.restart().await;
    world.decided().await;
    assert_eq!(world.identity(), None, "an ID of yesterday");
}

#[tokio::test]
async fn an_older_token_takes_no_newer_ones_place() {
    let world = issued("frontend").await;
    let token = |second: u64| Some(Token::new(format!("token of frontend {second}")));
    world.publish_dated("frontend", 7).await;
    world.publish_dated("frontend", 3).await;
    assert_eq!(world.record().identity().unwrap().token, token(7));
    // Nor one that is on record.
    world.restart().await;
    world.decided().await;
    world.publish_dated("frontend", 5).await;
    assert_eq!(world.record().identity().unwrap().token, token(7));
    world.publish_dated("frontend", 9).await;
    assert_eq!(world.record().identity().unwrap().token, token(9));
}

#[tokio::test]
async fn without_the_issuers_keys_the_authoritys_signature_carries_an_identity_over() {
    let world = issued("frontend").await;
    let before = world.serial();
    world.issuer.away.store(true, Ordering::Relaxed);
    world.restart().await;
    world.until("the identity", || world.identity().is_some()).await;
    assert_eq!(world.serial(), before);
    let entry = world.volumes.get_of::<Identity>(&volume()).unwrap();
    assert_eq!(entry.view().seen.unproved, Some(Awaits::Keys));
    assert!(entry.view().due.is_none(), "nothing may be asked for with a token that nobody has verified");
    world.issuer.away.store(false, Ordering::Relaxed);
    let entry = world.decided().await;
    assert_eq!(world.serial(), before);
    assert!(entry.view().due.is_some());
}

/// The state directory was made anew before anything could be decided.
#[tokio::test]
async fn what_is_undecided_is_recorded_again() {
    let world = issued("frontend").await;
    let before = world.record();
    world.issuer.away.store(true, Ordering::Relaxed);
    world.source.send_replace(Source::Missing("away".into()));
    world.restart().await;
    let entry = world.volumes.get_of::<Identity>(&volume()).unwrap();
    world.until("the look", || entry.view().seen.unproved == Some(Awaits::Keys)).await;
    assert!(entry.slot.lock().await.state.facts.is_none());
    world.volumes.state().unwrap().remove(&volume()).unwrap();
    world.volumes.store_all().await;
    assert_eq!(world.record().identity().unwrap().token, before.identity().unwrap().token);
    let id = |record: &Record| record.identity().unwrap().svid.as_ref().unwrap().spiffe_id.clone();
    assert_eq!(id(&world.record()), id(&before));
}

#[tokio::test]
async fn without_the_issuers_keys_nothing_else_is_served() {
    let mut world = issued("admin").await;
    world.issuer.away.store(true, Ordering::Relaxed);
    // What the token says of itself is another ID.
    world.put(&world.with_token(Some(Token::new("token of frontend".to_owned()))));
    world.restart().await;
    let entry = world.volumes.get_of::<Identity>(&volume()).unwrap();
    let undecided = || entry.view().seen.unproved == Some(Awaits::Keys);
    world.until("the look", undecided).await;
    assert_eq!(world.identity(), None);
    // And under another root nothing is.
    world.issuer.away.store(false, Ordering::Relaxed);
    world.answers.send(Answer::Sign).unwrap();
    world.until("the identity", || world.identity().is_some()).await;
    world.issuer.away.store(true, Ordering::Relaxed);
    world.replace_root().await;
    world.restart().await;
    let entry = world.volumes.get_of::<Identity>(&volume()).unwrap();
    world.until("the look", || entry.view().seen.unproved == Some(Awaits::Keys)).await;
    assert_eq!(world.identity(), None);
    assert!(entry.view().due.is_none());
}

#[tokio::test]
async fn without_authority_a_proved_record_is_served_until_the_authority_says_otherwise() {
    let mut world = issued("frontend").await;
    let before = world.serial();
    world.source.send_replace(Source::Missing("the Secret is not there".into()));
    world.restart().await;
    world.until("the identity", || world.identity().is_some()).await;
    assert_eq!(world.serial(), before);
    let entry = world.volumes.get_of::<Identity>(&volume()).unwrap();
    assert_eq!(entry.view().seen.unproved, Some(Awaits::Source));
    // It comes with another root: what was served under the roots of the record is taken back, not only
    // replaced.
    let (signer, answers) = authority(Duration::from_secs(3600));
    world.answers = answers;
    world.source.send_replace(Source::Authority(signer));
    world.until("the end of it", || world.identity().is_none()).await;
    world.answers.send(Answer::Sign).unwrap();
    world.until("an identity under the new root", || world.is_trusted()).await;
}

#[tokio::test]
async fn a_schedule_that_was_never_one_is_not_kept() {
    let world = issued("frontend").await;
    let mut record = world.record();
    let mut identity = record.identity().unwrap().clone();
    let svid = identity.svid.as_mut().unwrap();
    (record.generation, svid.rotate_at) = (u64::MAX, at(10_000_000_000));
    record.body = Body::Identity(identity);
    world.put(&record);
    world.restart().await;
    let entry = world.decided().await;
    let (due, slot) = (entry.view().due.unwrap(), entry.slot.lock().await);
    assert!(due < slot.state.held.as_ref().unwrap().svid.not_after(), "it would never be renewed");
    drop(slot);
    world.publish_dated("frontend", 2).await;
    assert_eq!(world.record().generation, 0);
}
