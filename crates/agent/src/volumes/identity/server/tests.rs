//! What becomes of connections that were not accepted, while another process holds the listener as well.

use super::*;
use seamount_workload_api::{Limits, Node, Unobserved};
use std::io::{ErrorKind, Read as _};
use std::os::unix::net::{UnixListener, UnixStream};

fn options() -> ServeOptions {
    ServeOptions {
        tenants: Tenants::new(Limits::default(), Node::unbounded(), 16),
        volumes: Arc::new(Semaphore::new(64)),
        pending: Duration::from_secs(60),
        descriptors: u64::MAX,
        observer: Arc::new(Unobserved),
    }
}

fn serve(listener: &UnixListener) -> VolumeServer {
    let fd = OwnedFd::from(listener.try_clone().unwrap());
    let cookie = rustix::net::sockopt::socket_cookie(&fd).unwrap();
    let listener = Listener { fd, cookie, existing: true };
    VolumeServer::start(listener, IdentityState::Pending, &options(), &tenant()).unwrap()
}

fn tenant() -> Arc<Tenant> {
    Tenant::new(Limits::default(), Node::unbounded())
}

/// One thread, and nothing that gives way to another task: what connects stays in the queue.
#[tokio::test]
async fn a_cut_ends_what_waits_in_the_queue_whoever_else_holds_the_listener() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    // A mounter that stands still keeps this one for as long as it does.
    let mounters = UnixListener::bind(&path).unwrap();
    let serving = serve(&mounters);
    let mut waiting: Vec<_> = (0..3).map(|_| UnixStream::connect(&path).unwrap()).collect();
    serving.cut();
    for client in &mut waiting {
        client.set_nonblocking(true).unwrap();
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0, "the end");
    }
    assert_eq!(UnixStream::connect(&path).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    serving.stop().await;
    assert!(ended(&mounters));
}

/// An agent that goes leaves the socket to the next one.
#[tokio::test]
async fn a_stop_leaves_what_waits_to_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let mounters = UnixListener::bind(&path).unwrap();
    let serving = serve(&mounters);
    let mut client = UnixStream::connect(&path).unwrap();
    serving.stop().await;
    assert!(!ended(&mounters));
    let _another = UnixStream::connect(&path).unwrap();
    client.set_nonblocking(true).unwrap();
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

/// The kubelet hears of it, and not the log alone: connections would hang in the queue of a volume that
/// counts as served.
#[tokio::test]
async fn what_the_kernel_does_not_watch_is_not_served() {
    // epoll_ctl(2): EPERM for a plain file, in the place of ENOSPC for one descriptor too many.
    let fd = OwnedFd::from(tempfile::tempfile().unwrap());
    let listener = Listener { fd, cookie: 1, existing: false };
    assert!(VolumeServer::start(listener, IdentityState::Pending, &options(), &tenant()).is_err());
}

/// Volumes and connections share what the process may have open, and neither takes all of it.
#[tokio::test]
async fn descriptors_of_volumes_are_bounded_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node { descriptors: Arc::new(Semaphore::new(6)), ..Node::unbounded() };
    let options = ServeOptions {
        tenants: Tenants::new(Limits::default(), node.clone(), 16),
        volumes: Arc::new(Semaphore::new(4)),
        ..options()
    };
    let start = |name: &str| {
        let fd = OwnedFd::from(UnixListener::bind(dir.path().join(name)).unwrap());
        let cookie = rustix::net::sockopt::socket_cookie(&fd).unwrap();
        VolumeServer::start(
            Listener { fd, cookie, existing: false },
            IdentityState::Pending,
            &options,
            &tenant(),
        )
    };
    let (first, second) = (start("a").unwrap(), start("b").unwrap());
    let refused = start("c").err().unwrap();
    assert_eq!(refused.raw_os_error(), Some(Errno::MFILE.raw_os_error()));
    assert_eq!(node.descriptors.available_permits(), 2, "for connections");
    first.stop().await;
    drop(start("d").unwrap());
    second.stop().await;
    assert_eq!((node.descriptors.available_permits(), options.volumes.available_permits()), (6, 4));
}
