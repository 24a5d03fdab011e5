use std::os::fd::{AsRawFd as _, RawFd};
use std::task::Waker;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

fn pair() -> (ReadInterestStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (ReadInterestStream::new(ours).unwrap(), theirs)
}

#[tokio::test]
async fn bytes_go_both_ways_and_the_end_is_seen() {
    let (mut ours, mut theirs) = pair();
    theirs.write_all(b"question").await.unwrap();
    let mut got = [0; 8];
    ours.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"question");
    ours.write_all(b"answer").await.unwrap();
    ours.shutdown().await.unwrap();
    let mut all = Vec::new();
    theirs.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"answer");
    theirs.write_all(b"more").await.unwrap();
    drop(theirs);
    let mut rest = Vec::new();
    ours.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"more");
    assert_eq!(ours.read(&mut got).await.unwrap(), 0, "the end stays the end");
}

/// Far more than the socket takes at once, in both directions at the same time, in pieces that do not fit
/// evenly.
#[tokio::test]
async fn a_slow_reader_gets_everything_while_the_other_direction_goes_on() {
    const LEN: usize = 3_000_017;
    let (ours, theirs) = pair();
    let bytes: Vec<u8> = (0..LEN).map(|i| (i % 251) as u8).collect();
    let (mut our_read, mut our_write) = tokio::io::split(ours);
    let (mut their_read, mut their_write) = theirs.into_split();
    let send = async {
        our_write.write_all(&bytes).await.unwrap();
        our_write.shutdown().await.unwrap();
    };
    let take = async {
        let (mut all, mut piece) = (Vec::new(), vec![0; 7001]);
        loop {
            tokio::task::yield_now().await;
            let n = their_read.read(&mut piece).await.unwrap();
            if n == 0 {
                break all;
            }
            all.extend_from_slice(&piece[..n]);
        }
    };
    let back = async {
        their_write.write_all(&bytes).await.unwrap();
        their_write.shutdown().await.unwrap();
    };
    let hear = async {
        let mut all = Vec::new();
        our_read.read_to_end(&mut all).await.unwrap();
        all
    };
    let ((), taken, (), heard) = tokio::join!(send, take, back, hear);
    assert!(taken == bytes && heard == bytes);
}

/// A reader that goes away while the buffer is full ends the writing with an error.
#[tokio::test]
async fn writing_to_a_reader_that_left_ends() {
    let (mut ours, theirs) = pair();
    let write = tokio::spawn(async move {
        loop {
            if let Err(e) = ours.write_all(&[7; 65_536]).await {
                return e;
            }
        }
    });
    let mut some = vec![0; 1000];
    let mut theirs = theirs;
    theirs.read_exact(&mut some).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    drop(theirs);
    assert_eq!(write.await.unwrap().kind(), io::ErrorKind::BrokenPipe);
}

/// What the kernel reports of a descriptor: the masks of this process's epoll descriptors
/// (proc_pid_fdinfo(5)).
fn watched(fd: RawFd) -> Vec<u32> {
    let mut masks = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fdinfo").unwrap() {
        // A descriptor of another test may be closed meanwhile.
        let Ok(text) = std::fs::read_to_string(entry.unwrap().path()) else { continue };
        for line in text.lines().filter(|line| line.starts_with("tfd:")) {
            let words: Vec<_> = line.split_whitespace().collect();
            if words[1].parse() == Ok(fd) {
                masks.push(u32::from_str_radix(words[3], 16).unwrap());
            }
        }
    }
    // tokio holds its epoll descriptor twice.
    masks.sort_unstable();
    masks.dedup();
    masks
}

const IN: u32 = 0x1;
const OUT: u32 = 0x4;

/// tokio's own stream is the counterexample: else this would not see what it looks for.
#[tokio::test]
async fn nobody_is_woken_when_the_other_end_has_read() {
    let (mut ours, mut theirs) = pair();
    let ask = |fd: RawFd| watched(fd).iter().map(|mask| mask & (IN | OUT)).collect::<Vec<_>>();
    let fd = |ours: &ReadInterestStream| ours.stream.as_ref().unwrap().as_raw_fd();
    let number = fd(&ours);
    assert_eq!(ask(number), [IN]);
    assert_eq!(ask(theirs.as_raw_fd()), [IN | OUT]);
    // While it is full, and no longer.
    let much = vec![7; 1_000_000];
    let mut cx = Context::from_waker(Waker::noop());
    while Pin::new(&mut ours).poll_write(&mut cx, &much).is_ready() {}
    // The same descriptor: a client that does not read takes no second one.
    assert_eq!((ask(number), fd(&ours)), (vec![IN | OUT], number));
    let mut space = vec![0; 1_000_000];
    assert!(theirs.read(&mut space).await.unwrap() > 0);
    ours.write_all(b"x").await.unwrap();
    assert_eq!((ask(number), fd(&ours)), (vec![IN], number));
}

async fn heard(reading: tokio::task::JoinHandle<[u8; 4]>) -> [u8; 4] {
    tokio::time::timeout(Duration::from_secs(60), reading).await.expect("never woken").unwrap()
}

/// A task that waits to read waits on, whether the other direction becomes full or empty meanwhile, and
/// whichever task writes.
#[tokio::test]
async fn a_reader_hears_while_a_writer_waits_and_afterwards() {
    for while_full in [true, false] {
        let (ours, mut theirs) = pair();
        let (mut our_read, mut our_write) = tokio::io::split(ours);
        let reading = tokio::spawn(async move {
            let mut word = [0; 4];
            our_read.read_exact(&mut word).await.unwrap();
            word
        });
        // It waits before the writer begins.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let writing = tokio::spawn(async move { our_write.write_all(&vec![7; 1_000_000]).await.unwrap() });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!writing.is_finished() && !reading.is_finished());
        let mut all = vec![0; 1_000_000];
        if while_full {
            theirs.write_all(b"word").await.unwrap();
            assert_eq!(&heard(reading).await, b"word");
            theirs.read_exact(&mut all).await.unwrap();
        } else {
            theirs.read_exact(&mut all).await.unwrap();
            writing.await.unwrap();
            theirs.write_all(b"word").await.unwrap();
            assert_eq!(&heard(reading).await, b"word");
            continue;
        }
        writing.await.unwrap();
    }
}
