//! Several drivers on one node: one mounter, and nothing of one driver by a request for another.

use std::fs;
use std::os::unix::fs::MetadataExt;

use seamount_mounter_protocol::names::{DriverName, Volume};
use seamount_mounter_protocol::{Fault, Request, Subject, flag};

use crate::bench::{Bench, DRIVER, OWN, POD, bench, csi_listener, dial, mode, names, store};

const OTHER: &str = "identity.seamount.dev";
const BOTH: [&str; 4] = ["--driver", DRIVER, "--driver", OTHER];

fn other() -> DriverName {
    OTHER.parse().unwrap()
}

fn inode(bench: &Bench, path: &str) -> u64 {
    fs::symlink_metadata(bench.path(path)).unwrap().ino()
}

#[test]
fn each_driver_has_its_sockets_and_the_node_one_state() {
    bench("each_driver_has_its_sockets_and_the_node_one_state", |bench| {
        bench.start(&BOTH);
        let agent = bench.agent();
        agent.ask(&Request::State).good();
        let mut states = Vec::new();
        for driver in [DRIVER, OTHER] {
            let name: DriverName = driver.parse().unwrap();
            states.push(agent.ask(&Request::CsiListener(name.clone())).good().reply.numbers);
            agent.ask(&Request::RegistrationListener(name)).good();
            let sockets =
                [format!("plugins/{driver}/csi.sock"), format!("plugins_registry/{driver}-reg.sock")];
            for path in sockets {
                dial(bench.path(&path));
                assert_eq!(mode(bench.path(&path)), 0o600);
            }
            assert_eq!(names(bench.path(&format!("plugins/{driver}"))), ["csi.sock"]);
        }
        assert_eq!(names(bench.path(OWN)), ["lock", "state", "take-over.sock"]);
        assert!(states[0] == states[1] && states[0] != [0; 3]);
        // One driver's socket is removed: that one alone is made anew.
        let paths = [DRIVER, OTHER].map(|driver| format!("plugins_registry/{driver}-reg.sock"));
        let before = paths.each_ref().map(|path| inode(bench, path));
        fs::remove_file(bench.path(&paths[1])).unwrap();
        assert!(!agent.ask(&Request::RegistrationListener(other())).good().has(flag::EXISTING));
        assert!(
            agent.ask(&Request::RegistrationListener(DRIVER.parse().unwrap())).good().has(flag::EXISTING)
        );
        agent.ask(&Request::Offer(other())).good();
        assert_eq!(inode(bench, &paths[0]), before[0]);
        dial(bench.path(&paths[1]));
        // One that the mounter was not told of.
        for request in [Request::CsiListener, Request::RegistrationListener, Request::Offer]
            .map(|of| of("x.example.org".parse().unwrap()))
        {
            agent.ask(&request).bad(Fault::Unsupported, "without --driver x.example.org");
        }
        assert!(!bench.path("plugins/x.example.org").exists());
    });
}

#[test]
fn a_request_touches_volumes_of_its_own_driver_alone() {
    bench("a_request_touches_volumes_of_its_own_driver_alone", |bench| {
        bench.start(&BOTH);
        let agent = bench.agent();
        let (first, second) = (bench.volume("first"), bench.volume_of(POD, "second", OTHER));
        for volume in [&first, &second] {
            agent.identity(volume).good();
            dial(bench.target(volume).join("socket"));
        }
        let kept = agent.inspect(&second).good();
        let (cookie, fd) = (kept.reply.cookie, kept.fd.unwrap());
        // Both are listed, each with its driver.
        let mut listed: Vec<_> =
            agent.list().into_iter().map(|found| found.reply.subject.volume().cloned().unwrap()).collect();
        listed.sort_by_key(|volume| volume.name.clone());
        assert_eq!(listed, [first.clone(), second.clone()]);
        // The other driver's word, and that of one that the mounter does not have.
        for driver in [DRIVER, "x.example.org"] {
            let wrong = Volume { driver: driver.parse().unwrap(), ..second.clone() };
            let (fault, why) = match driver {
                DRIVER => (Fault::NotOurs, "of driver identity.seamount.dev"),
                _ => (Fault::Unsupported, "without --driver"),
            };
            agent.identity(&wrong).bad(fault, why);
            agent.tmpfs(&wrong, 0, 4096).bad(fault, why);
            agent.directory(&wrong).bad(fault, why);
            agent.inspect(&wrong).bad(fault, why);
            agent.unpublish(&wrong).bad(fault, why);
            let version = Request::SetOwnership { volume: wrong.clone(), version: "v".into() };
            agent.ask(&version).bad(fault, why);
            agent.ask_with(&store(&wrong, cookie), &[&fd]).bad(fault, why);
        }
        // Also one that is kept nowhere else: an orphan is told from a volume of ours.
        assert_eq!(agent.inspect(&second).good().reply.cookie, cookie);
        dial(bench.target(&second).join("socket"));
        fs::remove_file(bench.place(&second).join("vol_data.json")).unwrap();
        let found = agent.list();
        let orphan = found.iter().find(|found| found.has(flag::ORPHAN)).unwrap();
        assert_eq!(orphan.reply.subject.volume().unwrap().driver.as_str(), "orphan");
        for volume in [&first, &second] {
            agent.unpublish(volume).good();
        }
        assert!(agent.list().is_empty());
    });
}

#[test]
fn there_is_one_mounter_whatever_its_drivers_and_it_hands_on_all() {
    bench("there_is_one_mounter_whatever_its_drivers_and_it_hands_on_all", |bench| {
        bench.start(&BOTH);
        let volume = bench.volume_of(POD, "v", OTHER);
        let requests = [
            csi_listener(),
            Request::CsiListener(other()),
            Request::RegistrationListener(other()),
            Request::PublishIdentity(volume.clone()),
        ];
        let agent = bench.agent();
        let made: Vec<_> = requests.iter().map(|request| agent.ask(request).good()).collect();
        // A second one waits, also where no driver is the same.
        let socket = bench.path("logs/second.sock");
        let path = socket.to_str().unwrap().to_owned();
        let mut second = bench.command(&["--driver", "x.example.org"]);
        second.args(["--socket", &path]);
        bench.spawn(second, false);
        bench.wait_for(2, "another mounter holds the lock");
        assert!(!bench.log(2).contains("msg=\"ready\""));
        bench.kill_last();
        // A crash of the mounter: it gets back what the agent has, by driver.
        drop(agent);
        bench.kill();
        bench.start(&BOTH);
        let agent = bench.agent();
        let subjects = requests.iter().map(Request::subject);
        for (subject, made) in subjects.zip(&made) {
            let cookie = made.reply.cookie;
            let fd = made.fd.as_ref().unwrap();
            // In another driver's place it is not believed.
            if let Subject::Csi(of) = &subject {
                let wrong = if of.as_str() == DRIVER { other() } else { DRIVER.parse().unwrap() };
                let wrong = Request::StoreListener { subject: Subject::Csi(wrong), cookie };
                agent.ask_with(&wrong, &[fd]).bad(Fault::NotOurs, "socket's name");
            }
            agent.ask_with(&Request::StoreListener { subject, cookie }, &[fd]).good();
        }
        for (request, made) in requests.iter().zip(&made) {
            let again = agent.ask(request).good();
            assert!(again.has(flag::EXISTING) && again.reply.cookie == made.reply.cookie);
        }
    });
}
