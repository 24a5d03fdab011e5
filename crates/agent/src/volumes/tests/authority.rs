//! An authority that goes away and comes back: what was issued goes on, and health, metrics and log say so.

use super::*;
use seamount_telemetry::logging::captured::Captured;

const SILENT: &str = "the authority does not answer";

/// Two volumes, each with an SVID, and the log.
struct Pair {
    world: World,
    log: Captured,
}

impl Pair {
    async fn new(svid_ttl: Duration) -> Self {
        let log = Captured::start();
        let world = World::with_lifetime(svid_ttl).await;
        let pair = Self { world, log };
        for name in ["one", "two"] {
            pair.publish(name).await;
        }
        pair
    }

    async fn publish(&self, name: &str) {
        let (mut request, claims) = request("frontend");
        request.volume = named(name);
        let workload = crate::csi::request::bind(&request, &claims, "node-1").unwrap();
        let token = DatedToken::new(Token::new("token".to_owned()), &claims);
        self.world.volumes.publish(&request, workload, token).await.unwrap();
    }

    fn both(&self) -> Vec<Arc<VolumeEntry<Identity>>> {
        ["one", "two"]
            .into_iter()
            .filter_map(|name| self.world.volumes.get_of::<Identity>(&named(name)))
            .collect()
    }

    fn serial(&self, entry: &VolumeEntry<Identity>) -> Option<String> {
        let slot = entry.slot.try_lock().ok()?;
        slot.state.held.as_ref().map(|held| held.svid.serial_hex().to_owned())
    }

    /// Has both renewed now.
    fn hurry(&self) {
        for entry in self.both() {
            entry.view().due = Some(SystemTime::now());
            self.world.volumes.schedule.hurry(&entry);
        }
    }

    /// So many answers, and each a renewal that is due now.
    async fn answer(&self, what: &str, answers: [Answer; 2], done: impl Fn(&VolumeStatus<Identity>) -> bool) {
        answers.into_iter().for_each(|answer| self.world.answers.send(answer).unwrap());
        self.hurry();
        self.world.until_all(what, || self.both().iter().all(|entry| done(&entry.view()))).await;
    }

    fn reasons(&self, all: &[seamount_proto::node::Volume]) -> Vec<String> {
        all.iter().flat_map(|v| &v.faults).map(|f| f.reason.clone()).collect()
    }

    fn said(&self, text: &str) -> usize {
        self.log.lines().iter().filter(|line| line.text.contains(text)).count()
    }

    fn metric(&self, line: &str) -> bool {
        let text = self.world.volumes.metrics.encode().unwrap();
        text.lines().any(|l| l == line)
    }
}

impl World {
    async fn until_all(&self, what: &str, condition: impl Fn() -> bool) {
        let start = std::time::Instant::now();
        while !condition() {
            assert!(start.elapsed() < LONG, "waited in vain for {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn named(name: &str) -> Volume {
    Volume { name: name.parse().unwrap(), id: format!("csi-{name}").parse().unwrap(), ..volume() }
}

#[tokio::test]
async fn an_authority_that_is_away_takes_nothing_back_and_is_told_once() {
    let pair = Pair::new(Duration::from_secs(3600)).await;
    let volumes = &pair.world.volumes;
    pair.answer("identities", [Answer::Sign, Answer::Sign], |v| {
        matches!(v.status.content, Content::Ready { .. })
    })
    .await;
    let serials: Vec<_> = pair.both().iter().map(|e| pair.serial(e)).collect();
    let (report, problem) = volumes.report().await;
    assert_eq!((report.len(), problem), (2, None));
    assert_eq!(pair.reasons(&report), [""; 0]);
    assert_eq!(report[0].spiffe_id, "spiffe://example.org/ns/shop/sa/frontend");
    assert_eq!(Some(report[0].serial.clone()), serials[0]);

    pair.answer("failures", [Answer::Away, Answer::Away], |v| v.failures > 0).await;
    assert!(volumes.authority_health().is_down());
    assert_eq!(pair.both().iter().map(|e| pair.serial(e)).collect::<Vec<_>>(), serials, "taken back");
    let (report, _) = volumes.report().await;
    assert_eq!(pair.reasons(&report), ["RotationFailing", "RotationFailing"]);
    assert!(report[0].faults[0].message.contains("no route to it"), "{report:?}");
    let look = volumes.look(&named("one")).await.unwrap();
    assert_eq!(look.conditions[0].message, report[0].faults[0].message, "two truths");
    assert!(pair.metric("seamount_authority_requests_total{result=\"error\"} 2"));
    assert_eq!(pair.said(SILENT), 1, "{:?}", pair.log.lines());
    assert_eq!(pair.said("no new identity"), 0, "a line for each volume: {:?}", pair.log.lines());
    // A pod that has no identity yet is named.
    pair.publish("late").await;
    // The other two may try again meanwhile.
    for _ in 0..3 {
        pair.world.answers.send(Answer::Away).unwrap();
    }
    pair.world.until_all("the pod's line", || pair.said("no new identity") == 1).await;
    volumes.unpublish(&named("late")).await.unwrap();

    pair.answer("renewals", [Answer::Sign, Answer::Sign], |v| v.failures == 0).await;
    assert!(!volumes.authority_health().is_down());
    let after: Vec<_> = pair.both().iter().map(|e| pair.serial(e)).collect();
    assert!(serials.iter().all(|old| !after.contains(old)), "not renewed");
    assert_eq!(pair.reasons(&volumes.report().await.0), [""; 0]);
    assert_eq!(pair.said(SILENT), 1);
    // Again, for another change of state.
    pair.answer("failures", [Answer::Away, Answer::Away], |v| v.failures > 0).await;
    assert_eq!(pair.said(SILENT), 2);
    // An authority that refuses is there.
    pair.answer("refusals", [Answer::Deny, Answer::Deny], |v| {
        v.status.failure.as_deref().is_some_and(|why| why.contains("not this one"))
    })
    .await;
    assert!(!volumes.authority_health().is_down());
}

#[tokio::test]
async fn what_expires_while_the_authority_is_away_is_told_and_comes_back() {
    let pair = Pair::new(Duration::from_secs(2)).await;
    let volumes = &pair.world.volumes;
    for answer in [Answer::Sign, Answer::Sign] {
        pair.world.answers.send(answer).unwrap();
    }
    pair.world.until_all("the end of both", || pair.both().iter().all(|entry| entry.view().expired)).await;
    // The authority holds the requests for their renewal meanwhile: no pod has been refused.
    assert!(pair.metric("seamount_svids_expired 2"), "{}", volumes.metrics.encode().unwrap());
    assert!(pair.metric("seamount_svids_overdue 2"));
    assert!(pair.metric("seamount_volumes{source=\"authority\",state=\"unavailable\"} 2"));
    let (report, _) = volumes.report().await;
    assert_eq!(pair.reasons(&report), ["IdentityExpired", "IdentityExpired"]);
    assert_eq!(report[0].state, "expired");
    let lines = pair.said("SVIDs have expired");
    assert!((1..=2).contains(&lines), "{:?}", pair.log.lines());

    // Each of them may have to be asked for twice: it lives for two seconds.
    for _ in 0..200 {
        let _ = pair.world.answers.send(Answer::Sign);
    }
    pair.world.until_all("both", || pair.both().iter().all(|entry| !entry.view().expired)).await;
    assert_eq!(pair.said(SILENT), 0);
}

#[tokio::test]
async fn an_authority_that_nobody_asks_any_more_is_not_down() {
    let pair = Pair::new(Duration::from_secs(3600)).await;
    pair.answer("failures", [Answer::Away, Answer::Away], |v| v.failures > 0).await;
    assert!(pair.world.volumes.authority_health().is_down());
    for name in ["one", "two"] {
        pair.world.volumes.unpublish(&named(name)).await.unwrap();
    }
    let authority_health = pair.world.volumes.authority_health();
    pair.world.until_all("none to ask", || !authority_health.is_down()).await;
}

#[tokio::test]
async fn an_svid_that_comes_when_its_root_was_replaced_is_followed_by_another() {
    let mut world = World::new().await;
    world.publish("frontend").await.unwrap();
    world.until("the attempt", || world.volumes.permits.available_permits() < SIGNING).await;
    let asked = world.answers.clone();
    // Longer than calls are waited for: by now the old authority was asked.
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.replace_root().await;
    asked.send(Answer::Sign).unwrap();
    world.until("the late identity", || world.identity().is_some()).await;
    world.answers.send(Answer::Sign).unwrap();
    world.until("an identity under the new root", || world.is_trusted()).await;
}

#[tokio::test]
async fn whoever_waits_for_a_volume_keeps_nobody_else_from_an_identity() {
    let world = World::new().await;
    let publish = async |name: &str| {
        let (mut request, claims) = request("frontend");
        request.volume.name = name.parse().unwrap();
        let workload = crate::csi::request::bind(&request, &claims, "node-1").unwrap();
        let token = DatedToken::new(Token::new("token".to_owned()), &claims);
        world.volumes.publish(&request, workload, token).await.unwrap();
        world.answers.send(Answer::Sign).unwrap();
        let entry = world.volumes.get_of::<Identity>(&request.volume).unwrap();
        world
            .until("the identity", || entry.slot.try_lock().is_ok_and(|slot| slot.state.held.is_some()))
            .await;
        entry
    };
    let mut held = Vec::new();
    for number in 0..SIGNING {
        let entry = publish(&format!("busy-{number}")).await;
        held.push(Arc::clone(&entry.slot).lock_owned().await);
        entry.view().due = Some(SystemTime::now());
        world.volumes.schedule.hurry(&entry);
        world.until("the attempt", || entry.view().signing).await;
    }
    publish("id").await;
}
