use std::convert::Infallible;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use seamount_testkit::http2::frame;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|p| u8::from_str_radix(str::from_utf8(p).unwrap(), 16).unwrap()).collect()
}

#[test]
fn rfc_7541_c_4_the_authority_alone_is_overwritten() {
    let mut first = hex("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff");
    overwrite(&mut first).unwrap();
    assert_eq!(first, [&hex("8286 8441 0c")[..], b"xxxxxxxxxxxx"].concat());
    // The second request refers to the dynamic table and has another literal.
    let mut second = hex("8286 84be 5886 a8eb 1064 9cbf");
    overwrite(&mut second).unwrap();
    assert_eq!(second, hex("8286 84be 5886 a8eb 1064 9cbf"));
    // The third has a literal name (C.4.3).
    let mut third = hex("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf");
    overwrite(&mut third).unwrap();
    assert_eq!(third, hex("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf"));
}

#[test]
fn a_name_that_is_spelled_out_is_known_too() {
    let mut block =
        [&[0x83, 0x40, 10][..], b":authority", &[4], b"%2Fa", &[0x40, 1], b"a", &[1], b"b"].concat();
    let expected =
        [&[0x83, 0x40, 10][..], b":authority", &[4], b"xxxx", &[0x40, 1], b"a", &[1], b"b"].concat();
    overwrite(&mut block).unwrap();
    assert_eq!(block, expected);
}

#[test]
fn rfc_7541_c_1_integers() {
    assert_eq!(integer(&[0b0000_1010], 0, 5), Some((10, 1)));
    assert_eq!(integer(&[0b0001_1111, 0b1001_1010, 0b0000_1010], 0, 5), Some((1337, 3)));
    assert_eq!(integer(&[42], 0, 7), Some((42, 1)));
    for endless in [&[0x1f][..], &[0x1f, 0xff], &[0x1f, 0xff, 0xff, 0xff, 0xff]] {
        assert_eq!(integer(endless, 0, 5), None);
    }
}

#[test]
fn a_broken_block_stays_in_bounds() {
    for block in [&[0x41][..], &[0x41, 0x85, 1], &[0x41, 0xff, 0xff, 0xff, 0x7f], &[0x40, 0x7f]] {
        assert_eq!(overwrite(&mut block.to_vec()), None, "{block:?}");
    }
    assert_eq!(overwrite_in_frame(&mut frame(HEADERS, PADDED, 1, &[255, 0x82])), None);
    assert_eq!(overwrite_in_frame(&mut frame(HEADERS, PRIORITY, 1, &[0, 0])), None);
}

#[test]
fn frames_are_found_however_the_bytes_arrive() {
    let block = [&[0x83, 0x41, 4][..], b"%2Fa"].concat();
    let padded = [&[2][..], &[0; 5], &block, &[0, 0]].concat();
    let mut input = vec![b'P'; PREFACE];
    input.extend(frame(4, 0, 0, &[0x41; 6]));
    input.extend(frame(HEADERS, 0x5, 1, &block));
    input.extend(frame(0, 1, 1, &[0x41; 3000]));
    input.extend(frame(HEADERS, 0x4 | PADDED | PRIORITY, 3, &padded));
    input.extend(frame(6, 0, 0, &[0x41; 8]));
    let text = String::from_utf8_lossy(&input).replace("%2Fa", "xxxx");
    for size in [1, 2, 7, 9, 10, 64, input.len()] {
        let (mut filter, mut out) = (Filter::default(), BytesMut::new());
        input.chunks(size).for_each(|part| filter.feed(part, &mut out));
        assert_eq!(String::from_utf8_lossy(&out), text, "in parts of {size}");
    }
}

/// Sends a request as grpc-go does to a socket that it dialled by path; returns the type of the first frame
/// in answer.
async fn answer(mut client: DuplexStream) -> u8 {
    let mut block = vec![0x83, 0x86];
    for (index, value) in [(0x44_u8, "/a.B/C"), (0x41, "%2Fvar%2Flib%2Fkubelet%2Fplugins_registry%2Fx.sock")]
    {
        block.extend([index, u8::try_from(value.len()).unwrap()]);
        block.extend(value.bytes());
    }
    block.extend([0x5f, 16]);
    block.extend(b"application/grpc");
    client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    client.write_all(&frame(4, 0, 0, &[])).await.unwrap();
    client.write_all(&frame(HEADERS, 0x5, 1, &block)).await.unwrap();
    loop {
        let mut header = [0; HEADER];
        client.read_exact(&mut header).await.unwrap();
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        client.read_exact(&mut vec![0; usize::try_from(length).unwrap()]).await.unwrap();
        if header[8] == 1 {
            return header[3];
        }
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin) {
    let answer = service_fn(async |_| Ok::<_, Infallible>(hyper::Response::new(String::new())));
    http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer).await.unwrap();
}

#[tokio::test]
async fn an_authority_made_of_a_path_is_refused_by_h2_and_taken_by_us() {
    const RST_STREAM: u8 = 0x3;
    let (client, server) = tokio::io::duplex(4096);
    let task = tokio::spawn(serve(server));
    assert_eq!(answer(client).await, RST_STREAM, "h2 has changed: this module is no longer needed");
    task.abort();

    let (client, server) = tokio::io::duplex(4096);
    let task = tokio::spawn(serve(AuthorityHeaderFilter::new(server)));
    assert_eq!(answer(client).await, HEADERS);
    task.abort();
}

/// A client that has always more to say, and how often the connection's task was told to come again.
#[tokio::test]
async fn a_client_that_never_pauses_lets_others_go_on() {
    struct Endless;
    impl AsyncRead for Endless {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            buf.initialize_unfilled().fill(0);
            buf.advance(buf.remaining());
            Poll::Ready(Ok(()))
        }
    }
    #[derive(Default)]
    struct Woken(std::sync::atomic::AtomicUsize);
    impl std::task::Wake for Woken {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    }
    let woken = std::sync::Arc::new(Woken::default());
    let waker = std::task::Waker::from(std::sync::Arc::clone(&woken));
    let mut connection = AuthorityHeaderFilter::new(Endless);
    let mut space = vec![0; 16_384];
    for turn in 1..4 {
        let mut got = 0;
        while got < 1_000_000 {
            let mut read = ReadBuf::new(&mut space);
            match Pin::new(&mut connection).poll_read(&mut Context::from_waker(&waker), &mut read) {
                Poll::Ready(outcome) => outcome.unwrap(),
                Poll::Pending => break,
            }
            got += read.filled().len();
        }
        // The beginning of a frame may be held back, or come from the turn before.
        assert!((8 * 4096 - 9..=8 * 4096 + 9).contains(&got), "{got} bytes in one turn");
        assert_eq!(woken.0.load(std::sync::atomic::Ordering::SeqCst), turn);
    }
}
