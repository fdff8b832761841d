//! Sockets as hostile, slow and ordinary peers meet them.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use axum::http::request::Parts;
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_util::sync::CancellationToken;
use walcast::config;
use walcast::http::{Gate, Operations, Service, router};
use walcast::hub::outbox::{CloseReason, DirtyList, Outbox};
use walcast::transport::admit::{Admit, Refusal};
use walcast::transport::listener::{Connections, serve};
use walcast::transport::websocket::{Peer, binary_frame, text_frame};

/// How long anything may take before a test fails.
const DEADLINE: Duration = Duration::from_mins(2);

const MASK: [u8; 4] = [0xA1, 0xB2, 0xC3, 0xD4];

/// Echoes messages; answers when woken; does what some texts say.
struct Echo {
    outbox: Arc<Outbox>,
}

impl Echo {
    fn send(&self, frame: Bytes) -> ControlFlow<CloseReason> {
        match self.outbox.send(frame) {
            Ok(()) => ControlFlow::Continue(()),
            Err(reason) => ControlFlow::Break(reason),
        }
    }
}

impl Peer for Echo {
    fn text(&mut self, text: &str) -> ControlFlow<CloseReason> {
        match text {
            "leave" => {
                self.send(text_frame(b"last words"))?;
                ControlFlow::Break(CloseReason::Session { code: 4001, text: "as asked" })
            }
            "panic" => panic!("as asked"),
            _ => self.send(text_frame(text.as_bytes())),
        }
    }

    fn binary(&mut self, data: &[u8]) -> ControlFlow<CloseReason> {
        self.send(binary_frame(data))
    }

    fn woken(&mut self) -> ControlFlow<CloseReason> {
        self.send(text_frame(b"woken"))
    }
}

/// Lets everybody in, but for a query `refuse`.
struct Door {
    opened: mpsc::UnboundedSender<Arc<Outbox>>,
}

impl Admit for Door {
    type Peer = Echo;

    fn admit(
        &self,
        request: &Parts,
    ) -> Result<impl FnOnce(Arc<Outbox>) -> Echo + Send + 'static, Refusal> {
        if request.uri.query().is_some_and(|query| query == "refuse") {
            return Err(Refusal {
                status: StatusCode::UNAUTHORIZED,
                error: Some(Cow::Borrowed("API key is missing")),
                delay: Duration::from_millis(30),
            });
        }
        let opened = self.opened.clone();
        Ok(move |outbox: Arc<Outbox>| {
            let _ = opened.send(Arc::clone(&outbox));
            Echo { outbox }
        })
    }
}

struct Server {
    address: SocketAddr,
    connections: Arc<Connections>,
    /// The outboxes of new sockets, in the order they opened.
    opened: mpsc::UnboundedReceiver<Arc<Outbox>>,
    stop: CancellationToken,
    task: JoinHandle<std::io::Result<()>>,
}

impl Server {
    async fn start(change: impl FnOnce(&mut config::Server)) -> Self {
        let mut settings = config::Server::default();
        change(&mut settings);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Connections::new(&settings);
        let (sender, opened) = mpsc::unbounded_channel();
        let routes = router(Arc::new(Service {
            admit: Door { opened: sender },
            connections: Arc::clone(&connections),
            ready: Box::new(|| Err("the slot".into())),
            metrics: Box::new(|| "walcast_up 1\n".into()),
            gate: Gate::default(),
            operations: Operations::default(),
            events: None,
            socketio: None,
            broadcasts: None,
            rows: None,
            proxy: None,
        }));
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(listener, routes, Arc::clone(&connections), stop.clone()));
        Self { address, connections, opened, stop, task }
    }

    async fn connect(&mut self) -> (Raw, Arc<Outbox>) {
        let raw = Raw::open(TcpStream::connect(self.address).await.unwrap()).await;
        (raw, self.next_opened().await)
    }

    async fn next_opened(&mut self) -> Arc<Outbox> {
        timeout(DEADLINE, self.opened.recv()).await.unwrap().unwrap()
    }

    /// Sends one request as it is; reads to the end of the stream.
    async fn request(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = Vec::new();
        // A reset after the response is as good an end as any.
        let _ = timeout(DEADLINE, stream.read_to_end(&mut response)).await.unwrap();
        String::from_utf8(response).unwrap()
    }
}

/// A client that can break every rule.
struct Raw {
    stream: TcpStream,
    read: Vec<u8>,
}

/// One frame from the server, or the end of the stream.
#[derive(Debug, PartialEq, Eq)]
enum Got {
    Text(String),
    Binary(Vec<u8>),
    Pong(Vec<u8>),
    Close(u16),
    End,
}

fn upgrade(target: &str, extra: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{extra}\r\n"
    )
}

fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..=125 => frame.push(0x80 | u8::try_from(length).unwrap()),
        length @ 126..=0xFFFF => {
            frame.push(0xFE);
            frame.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        length => {
            frame.push(0xFF);
            frame.extend(u64::try_from(length).unwrap().to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ MASK[at % 4]));
    frame
}

impl Raw {
    async fn open(mut stream: TcpStream) -> Self {
        stream.write_all(upgrade("/socket/websocket?apikey=x", "").as_bytes()).await.unwrap();
        let mut raw = Self { stream, read: Vec::new() };
        raw.expect_upgrade().await;
        raw
    }

    async fn expect_upgrade(&mut self) {
        let end = loop {
            if let Some(at) = self.read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(self.fill().await > 0, "the server closed instead of upgrading");
        };
        let head = String::from_utf8(self.read.drain(..end).collect()).unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    }

    /// Reads something; 0 at the end.
    async fn fill(&mut self) -> usize {
        timeout(DEADLINE, self.stream.read_buf(&mut self.read)).await.unwrap().unwrap_or(0)
    }

    async fn send(&mut self, first: u8, payload: &[u8]) {
        self.write(&masked(first, payload)).await;
    }

    async fn write(&mut self, bytes: &[u8]) {
        timeout(DEADLINE, self.stream.write_all(bytes)).await.unwrap().unwrap();
    }

    async fn next(&mut self) -> Got {
        loop {
            if let Some((first, payload)) = self.take_frame() {
                return match first {
                    0x81 => Got::Text(String::from_utf8(payload).unwrap()),
                    0x82 => Got::Binary(payload),
                    0x8A => Got::Pong(payload),
                    0x88 if payload.is_empty() => Got::Close(1005),
                    0x88 => Got::Close(u16::from_be_bytes([payload[0], payload[1]])),
                    other => panic!("a frame that begins with {other:x}"),
                };
            }
            if self.fill().await == 0 {
                assert!(self.read.is_empty(), "the stream ended within a frame");
                return Got::End;
            }
        }
    }

    fn take_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let (&first, &second) = (self.read.first()?, self.read.get(1)?);
        assert!(second & 0x80 == 0, "server frames are unmasked");
        let (head, length) = match second {
            126 => (4, usize::from(u16::from_be_bytes(self.read.get(2..4)?.try_into().unwrap()))),
            127 => {
                let length = u64::from_be_bytes(self.read.get(2..10)?.try_into().unwrap());
                (10, usize::try_from(length).unwrap())
            }
            short => (2, usize::from(short)),
        };
        self.read.get(head..head + length)?;
        let frame: Vec<u8> = self.read.drain(..head + length).collect();
        Some((first, frame[head..].to_vec()))
    }

    /// Reads to the end; the last frames must be these.
    async fn expect(&mut self, expected: &[Got]) {
        for expected in expected {
            assert_eq!(self.next().await, *expected);
        }
    }
}

fn text(text: &str) -> Got {
    Got::Text(text.into())
}

/// Sends `bytes` to a fresh socket and expects these frames and then the end.
async fn check(server: &mut Server, bytes: &[u8], expected: &[Got]) {
    let (mut raw, _) = server.connect().await;
    raw.write(bytes).await;
    raw.expect(expected).await;
    raw.expect(&[Got::End]).await;
}

#[tokio::test]
async fn both_paths_upgrade_and_echo() {
    let mut server = Server::start(|_| {}).await;
    for path in ["/socket/websocket", "/realtime/v1/websocket?apikey=x&vsn=1.0.0&other=1"] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        // The first frames may come with the request, in one packet.
        let first = [upgrade(path, "").as_bytes(), &masked(0x81, b"early")].concat();
        stream.write_all(&first).await.unwrap();
        let mut raw = Raw { stream, read: Vec::new() };
        raw.expect_upgrade().await;
        raw.send(0x82, &[1, 2]).await;
        raw.expect(&[text("early"), Got::Binary(vec![1, 2])]).await;
        server.next_opened().await;
    }
}

#[tokio::test]
async fn fragments_and_control_frames_interleave() {
    let mut server = Server::start(|_| {}).await;
    let bytes = [
        masked(0x01, "grü".as_bytes()),
        masked(0x89, b"are you there"),
        masked(0x00, b""),
        masked(0x8A, b"unasked"),
        masked(0x80, "ße".as_bytes()),
        masked(0x88, &1000_u16.to_be_bytes()),
        masked(0x81, b"after the close"),
    ]
    .concat();
    let pong = || Got::Pong(b"are you there".to_vec());
    check(&mut server, &bytes, &[pong(), text("grüße"), Got::Close(1000)]).await;

    // The same, a byte at a time.
    let (mut raw, _) = server.connect().await;
    for byte in bytes {
        raw.write(&[byte]).await;
        if raw.read.is_empty() {
            tokio::task::yield_now().await;
        }
    }
    raw.expect(&[pong(), text("grüße"), Got::Close(1000), Got::End]).await;
}

#[tokio::test]
async fn f58_a_breach_of_the_protocol_closes_with_its_code() {
    let mut server = Server::start(|_| {}).await;
    let closes = |code| [Got::Close(code)];
    for bit in [0xC1, 0xA1, 0x91] {
        check(&mut server, &masked(bit, b"x"), &closes(1002)).await;
    }
    for opcode in [0x83, 0x87, 0x8B, 0x8F] {
        check(&mut server, &masked(opcode, b""), &closes(1002)).await;
    }
    check(&mut server, b"\x81\x05hello", &closes(1002)).await;
    check(&mut server, &masked(0x09, b""), &closes(1002)).await;
    check(&mut server, &masked(0x89, &[0; 126]), &closes(1002)).await;
    check(&mut server, &masked(0x80, b"x"), &closes(1002)).await;
    check(&mut server, &[masked(1, b"x"), masked(0x82, b"")].concat(), &closes(1002)).await;
    let length = [&[0x82, 0xFF][..], &(1_u64 << 63).to_be_bytes(), &MASK].concat();
    check(&mut server, &length, &closes(1002)).await;
    check(&mut server, &masked(0x88, b"x"), &closes(1002)).await;
    check(&mut server, &masked(0x88, &1006_u16.to_be_bytes()), &closes(1002)).await;
    check(&mut server, &masked(0x88, b""), &closes(1005)).await;
    check(&mut server, &masked(0x88, &4321_u16.to_be_bytes()), &closes(4321)).await;
    // What was said before it is still answered.
    let bytes = [masked(0x81, b"well"), masked(0xF1, b"ill")].concat();
    check(&mut server, &bytes, &[text("well"), Got::Close(1002)]).await;
}

#[tokio::test]
async fn f63_text_that_is_not_utf8_closes_with_1007_at_the_fragment_that_spoils_it() {
    let mut server = Server::start(|_| {}).await;
    check(&mut server, &masked(0x81, b"\xED\xA0\x80"), &[Got::Close(1007)]).await;
    check(&mut server, &masked(0x81, b"\xE2\x82"), &[Got::Close(1007)]).await;
    // No final fragment is needed to know.
    let bytes = [masked(0x01, b"\xE2\x82"), masked(0x00, b"x")].concat();
    check(&mut server, &bytes, &[Got::Close(1007)]).await;
    let bytes = [masked(0x01, b"\xE2\x82"), masked(0x80, b"\xAC")].concat();
    let (mut raw, _) = server.connect().await;
    raw.write(&bytes).await;
    raw.expect(&[text("€")]).await;
}

#[tokio::test]
async fn f60_a_message_above_five_million_bytes_closes_with_1009() {
    let mut server = Server::start(|_| {}).await;
    // The header says so; nothing needs to follow.
    let header = [&[0x82, 0xFF][..], &5_000_001_u64.to_be_bytes(), &MASK].concat();
    check(&mut server, &header, &[Got::Close(1009)]).await;
    let header = [&[0x82, 0xFF][..], &(u64::MAX >> 1).to_be_bytes(), &MASK].concat();
    check(&mut server, &header, &[Got::Close(1009)]).await;
    // The limit is on the message, however it is cut.
    let bytes = [masked(0x02, &vec![7; 4_999_999]), masked(0x00, &[7, 7])].concat();
    check(&mut server, &bytes, &[Got::Close(1009)]).await;

    let (mut raw, _) = server.connect().await;
    let largest = vec![7; 5_000_000];
    raw.send(0x82, &largest).await;
    raw.expect(&[Got::Binary(largest)]).await;
}

#[tokio::test]
async fn f59_a_flood_of_continuations_takes_no_memory_beyond_the_limit() {
    let mut server = Server::start(|settings| settings.frame_bytes_max = 100_000).await;
    let (mut raw, _) = server.connect().await;
    raw.send(0x01, b"").await;
    for _ in 0..1000 {
        raw.write(&masked(0x00, b"").repeat(100)).await;
    }
    raw.send(0x80, b"end").await;
    raw.expect(&[text("end")]).await;
    assert_eq!(server.connections.unfinished_bytes(), 0);

    raw.send(0x01, b"").await;
    raw.write(&masked(0x00, &[b'x'; 100]).repeat(1001)).await;
    raw.expect(&[Got::Close(1009), Got::End]).await;
}

#[tokio::test]
async fn f08_unfinished_messages_of_all_sockets_share_one_bound() {
    let mut server = Server::start(|settings| settings.unfinished_bytes_max = 1_000_000).await;
    let (mut first, _) = server.connect().await;
    first.write(&masked(0x82, &vec![7; 900_000])[..800_000]).await;
    within_deadline(|| server.connections.unfinished_bytes() >= 800_000).await;
    check(&mut server, &masked(0x82, &vec![7; 900_000])[..700_000], &[Got::Close(1013)]).await;
    within_deadline(|| server.connections.unfinished_bytes() <= 1_000_000).await;
    first.write(&masked(0x82, &vec![7; 900_000])[800_000..]).await;
    first.expect(&[Got::Binary(vec![7; 900_000])]).await;
    within_deadline(|| server.connections.unfinished_bytes() == 0).await;
}

/// Until something is true that gives no sign of its own.
async fn within_deadline(mut is_true: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_true() {
        assert!(start.elapsed() < DEADLINE, "it did not become true");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_client_in_general_use_is_understood() {
    let mut server = Server::start(|_| {}).await;
    let url = format!("ws://{}/socket/websocket?vsn=2.0.0", server.address);
    let (mut client, response) = tokio_tungstenite::connect_async(url).await.unwrap();
    assert_eq!(response.status(), 101);
    assert!(response.headers().get("sec-websocket-extensions").is_none());
    let outbox = server.next_opened().await;
    for length in [0, 1, 125, 126, 65_535, 65_536, 1_000_000] {
        let message = "é".repeat(length / 2) + &"x".repeat(length % 2);
        client.send(Message::text(message.clone())).await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), Message::text(message));
        client.send(Message::binary(vec![7; length])).await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), Message::binary(vec![7; length]));
    }
    client.send(Message::Ping("p".into())).await.unwrap();
    assert_eq!(client.next().await.unwrap().unwrap(), Message::Pong("p".into()));
    outbox.wake();
    assert_eq!(client.next().await.unwrap().unwrap(), Message::text("woken"));
    client.send(Message::text("leave")).await.unwrap();
    assert_eq!(client.next().await.unwrap().unwrap(), Message::text("last words"));
    let Message::Close(Some(close)) = client.next().await.unwrap().unwrap() else {
        panic!("a close frame")
    };
    assert_eq!((close.code, close.reason.as_str()), (CloseCode::Library(4001), "as asked"));
    assert!(client.next().await.is_none_or(|end| end.is_err()));
    within_deadline(|| server.connections.sockets() == 0).await;
    let refused = CloseReason::Session { code: 4001, text: "as asked" };
    assert_eq!(outbox.offer(text_frame(b"late")), Err(refused));
}

#[tokio::test]
async fn f52_a_slow_reader_is_closed_and_delays_nobody() {
    let mut server = Server::start(|settings| settings.outbox_bytes_max = 200_000).await;
    // A small window, so that the kernel takes little on its behalf.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut slow = Raw::open(socket.connect(server.address).await.unwrap()).await;
    let slow_outbox = server.next_opened().await;
    let (mut fast, fast_outbox) = server.connect().await;

    let frame = text_frame(&[b'x'; 10_000]);
    let mut sent = 0;
    let reason = loop {
        let mut dirty = DirtyList::default();
        dirty.offer(&fast_outbox, &frame).unwrap();
        let offered = dirty.offer(&slow_outbox, &frame);
        dirty.flush();
        sent += 1;
        assert_eq!(fast.next().await, text(&"x".repeat(10_000)));
        assert!(slow_outbox.queued_bytes() <= 200_000);
        match offered {
            Ok(()) => assert!(sent < 10_000, "the kernel takes it all"),
            Err(reason) => break reason,
        }
    };
    assert_eq!(reason, CloseReason::TooSlow);
    // What it pinned is free at once, but for the frame that was begun.
    assert!(slow_outbox.queued_bytes() < 11_000);

    // Once it reads again, it learns why, at a frame's boundary.
    let mut received = 0;
    loop {
        let got = slow.next().await;
        if !matches!(got, Got::Text(_)) {
            break assert_eq!(got, Got::Close(1013));
        }
        received += 1;
    }
    assert!(received < sent, "{received} of {sent}");
    slow.expect(&[Got::End]).await;
}

#[tokio::test]
async fn a_full_socket_is_drained_by_its_own_task_in_order() {
    let mut server = Server::start(|_| {}).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = Raw::open(socket.connect(server.address).await.unwrap()).await;
    let outbox = server.next_opened().await;
    // More than the socket takes, and all of it before the client reads.
    let mut sent = 0;
    while outbox.queued_bytes() < 1_000_000 {
        let frames: Vec<Bytes> =
            (0..100).map(|at| text_frame(format!("{:<2000}", sent + at).as_bytes())).collect();
        sent += frames.len();
        if outbox.offer_many(&frames).unwrap() {
            outbox.flush();
        }
    }
    for at in 0..sent {
        assert_eq!(client.next().await, text(&format!("{at:<2000}")));
    }
    within_deadline(|| outbox.queued_bytes() == 0).await;
    // And the next one leaves at once again.
    assert_eq!(outbox.offer(text_frame(b"on")), Ok(true));
    outbox.flush();
    client.expect(&[text("on")]).await;
}

#[tokio::test]
async fn one_frame_above_the_bound_passes_when_it_is_alone() {
    let mut server = Server::start(|settings| settings.outbox_bytes_max = 1000).await;
    let (mut client, outbox) = server.connect().await;
    let large = text_frame(&vec![b'x'; 3_000_000]);
    outbox.send(large).unwrap();
    assert_eq!(client.next().await, text(&"x".repeat(3_000_000)));
    // A batch that was not flushed yet is not slowness.
    let frames = vec![text_frame(&[b'y'; 600]); 10];
    outbox.offer_many(&frames).unwrap();
    outbox.flush();
    for _ in 0..10 {
        assert_eq!(client.next().await, text(&"y".repeat(600)));
    }
}

#[tokio::test]
async fn f48_a_socket_is_closed_when_nothing_comes_for_the_idle_timeout() {
    const IDLE: Duration = Duration::from_millis(1500);
    let idle_ms = IDLE.as_millis().try_into().unwrap();
    let mut server = Server::start(|settings| settings.idle_timeout_ms = idle_ms).await;
    let (mut quiet, _) = server.connect().await;
    let (mut alive, alive_outbox) = server.connect().await;
    let start = Instant::now();
    let quiet = tokio::spawn(async move {
        quiet.expect(&[Got::Close(1000), Got::End]).await;
        start.elapsed()
    });
    while start.elapsed() < IDLE * 2 {
        alive.send(0x8A, b"").await;
        // What is sent to it does not keep a socket open, what it sends does.
        alive.send(0x81, b"x").await;
        alive.expect(&[text("x")]).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let lived = quiet.await.unwrap();
    assert!(lived + Duration::from_millis(5) >= IDLE, "closed after {lived:?}");
    assert_eq!(alive_outbox.closing(), None);
}

#[tokio::test]
async fn tokens_of_sixteen_kib_pass_and_endless_headers_do_not() {
    let mut server = Server::start(|_| {}).await;
    let token = "t".repeat(20 * 1024);
    for request in [
        upgrade(&format!("/realtime/v1/websocket?apikey={token}"), ""),
        upgrade("/realtime/v1/websocket", &format!("x-api-key: {token}\r\n")),
    ] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        Raw { stream, read: Vec::new() }.expect_upgrade().await;
        server.next_opened().await;
    }
    let endless = upgrade("/socket/websocket", &format!("x-filler: {}\r\n", "t".repeat(70_000)));
    assert!(server.request(&endless).await.starts_with("HTTP/1.1 431 "));
    let many = upgrade("/socket/websocket", &"x-filler: t\r\n".repeat(200));
    assert!(server.request(&many).await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test]
async fn f64_a_client_that_is_slow_with_its_request_is_dropped() {
    let server = Server::start(|settings| settings.header_timeout_ms = 200).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut trickling = TcpStream::connect(server.address).await.unwrap();
    let start = Instant::now();
    let trickle = async {
        // One byte a turn keeps nothing open.
        while trickling.write_all(b"G").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(start.elapsed() < DEADLINE, "still open");
        }
    };
    let mut rest = Vec::new();
    let silence = timeout(DEADLINE, silent.read_to_end(&mut rest));
    let ((), silence) = tokio::join!(trickle, silence);
    let _ = silence.unwrap();
    within_deadline(|| server.connections.http() == 0).await;
}

#[tokio::test]
async fn requests_that_get_no_socket_are_told_why() {
    let mut server = Server::start(|settings| settings.connections_max = 2).await;
    let close = "connection: close\r\n";
    let start = Instant::now();
    let refused = server.request(&upgrade("/socket/websocket?refuse", close)).await;
    assert!(refused.starts_with("HTTP/1.1 401 "), "{refused}");
    assert!(refused.ends_with(r#"{"error":"API key is missing"}"#), "{refused}");
    assert!(start.elapsed() >= Duration::from_millis(30));

    let plain = format!("GET /socket/websocket HTTP/1.1\r\nhost: x\r\n{close}\r\n");
    let answer = server.request(&plain).await;
    assert!(answer.starts_with("HTTP/1.1 426 "), "{answer}");
    assert!(answer.to_lowercase().contains("sec-websocket-version: 13"), "{answer}");
    let old = upgrade("/socket/websocket", close).replace("version: 13", "version: 8");
    assert!(server.request(&old).await.starts_with("HTTP/1.1 426 "));
    let short = upgrade("/socket/websocket", close).replace("dGhlIHNhbXBsZSBub25jZQ==", "dGhl");
    assert!(server.request(&short).await.starts_with("HTTP/1.1 400 "));
    let post = upgrade("/socket/websocket", close).replace("GET", "POST");
    assert!(server.request(&post).await.starts_with("HTTP/1.1 405 "));

    let (first, _) = server.connect().await;
    let (_second, _) = server.connect().await;
    let full = server.request(&upgrade("/socket/websocket", close)).await;
    assert!(full.starts_with("HTTP/1.1 503 "), "{full}");
    // Probes are answered all the same.
    for (path, status, body) in [
        ("healthz", 200, "ok"),
        ("readyz", 503, r#"{"error":"the slot"}"#),
        ("metrics", 200, "walcast_up 1\n"),
        ("nothing", 404, ""),
    ] {
        let answer =
            server.request(&format!("GET /{path} HTTP/1.1\r\nhost: x\r\n{close}\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.ends_with(body), "{answer}");
    }
    // A place that is left is free for the next.
    drop(first);
    within_deadline(|| server.connections.sockets() == 1).await;
    server.connect().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_get_503_without_being_read() {
    let server = Server::start(|settings| settings.http_connections_max = 1).await;
    let waiting = TcpStream::connect(server.address).await.unwrap();
    within_deadline(|| server.connections.http() == 1).await;
    let answer = server.request("").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("content-length: {}", body.len())), "{answer}");
    drop(waiting);
    within_deadline(|| server.connections.http() == 0).await;
}

#[tokio::test]
async fn a_peer_that_ends_without_a_close_frame_is_gone() {
    let mut server = Server::start(|_| {}).await;
    let (mut half, outbox) = server.connect().await;
    half.stream.shutdown().await.unwrap();
    half.expect(&[Got::End]).await;
    within_deadline(|| server.connections.sockets() == 0).await;
    assert_eq!(outbox.offer(text_frame(b"late")), Err(CloseReason::Gone));

    // Reset instead of ended.
    let (raw, outbox) = server.connect().await;
    socket2::SockRef::from(&raw.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(raw);
    within_deadline(|| outbox.closing() == Some(CloseReason::Gone)).await;
    within_deadline(|| server.connections.sockets() == 0).await;
}

#[tokio::test]
async fn f61_compression_is_not_agreed_on_and_what_is_compressed_is_a_breach() {
    let server = Server::start(|_| {}).await;
    let offer = "sec-websocket-extensions: permessage-deflate; client_max_window_bits\r\n";
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(upgrade("/socket/websocket", offer).as_bytes()).await.unwrap();
    let mut raw = Raw { stream, read: Vec::new() };
    while !raw.read.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        assert!(raw.fill().await > 0);
    }
    let head = String::from_utf8(raw.read.clone()).unwrap().to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101 ") && !head.contains("extensions"), "{head}");
    raw.read.clear();
    // A mebibyte of nothing, deflated.
    let bomb = [&[0xEC, 0xC1, 0x01, 0x01][..], &[0; 900]].concat();
    raw.send(0xC1, &bomb).await;
    raw.expect(&[Got::Close(1002), Got::End]).await;
}

#[tokio::test]
async fn f02_a_panic_in_one_session_ends_only_that_one() {
    let mut server = Server::start(|_| {}).await;
    let (mut other, _) = server.connect().await;
    let (mut broken, outbox) = server.connect().await;
    broken.send(0x81, b"panic").await;
    broken.expect(&[Got::End]).await;
    within_deadline(|| server.connections.sockets() == 1).await;
    assert!(outbox.offer(text_frame(b"late")).is_err());
    other.send(0x81, b"still here").await;
    other.expect(&[text("still here")]).await;
}

#[tokio::test]
async fn a_stop_says_goodbye_to_everybody_within_the_drain_time() {
    let mut server = Server::start(|settings| settings.drain_timeout_ms = 1000).await;
    let (mut polite, outbox) = server.connect().await;
    // This one takes nothing, so that it can only be left behind.
    let (_deaf, deaf_outbox) = server.connect().await;
    while deaf_outbox.queued_bytes() < 1_000_000 {
        deaf_outbox.send(text_frame(&vec![b'x'; 100_000])).unwrap();
    }
    // A connection that waits for its next request must not hold the stop either.
    let idle_http = TcpStream::connect(server.address).await.unwrap();
    within_deadline(|| server.connections.http() == 1).await;
    outbox.offer(text_frame(b"before the end")).unwrap();
    let start = Instant::now();
    server.stop.cancel();
    polite.expect(&[text("before the end"), Got::Close(1012)]).await;
    polite.send(0x88, &1012_u16.to_be_bytes()).await;
    polite.expect(&[Got::End]).await;
    timeout(DEADLINE, &mut server.task).await.unwrap().unwrap().unwrap();
    let took = start.elapsed();
    assert!(took < DEADLINE / 4, "{took:?}");
    assert!(TcpStream::connect(server.address).await.is_err(), "it still listens");
    drop(idle_http);
}

#[tokio::test]
async fn a_close_waits_for_the_peer_no_longer_than_its_grace() {
    let mut server = Server::start(|settings| settings.drain_timeout_ms = 300).await;
    let (mut silent, outbox) = server.connect().await;
    outbox.close(CloseReason::Session { code: 1001, text: "too many joins" });
    // A second reason changes nothing.
    assert_eq!(
        outbox.close(CloseReason::Idle),
        CloseReason::Session { code: 1001, text: "too many joins" }
    );
    let start = Instant::now();
    silent.expect(&[Got::Close(1001), Got::End]).await;
    // The client neither answers nor leaves.
    within_deadline(|| server.connections.sockets() == 0).await;
    assert!(start.elapsed() < DEADLINE / 4);
}

#[tokio::test]
async fn f48_a_peer_that_speaks_but_never_reads_is_given_up() {
    let mut server = Server::start(|settings| settings.idle_timeout_ms = 500).await;
    let (mut deaf, outbox) = server.connect().await;
    while outbox.queued_bytes() < 1_000_000 {
        outbox.send(text_frame(&vec![b'x'; 100_000])).unwrap();
    }
    // Keeps it from being idle, until the kernel has had enough.
    let start = Instant::now();
    while outbox.closing().is_none() {
        assert!(start.elapsed() < DEADLINE, "still open");
        let _ = deaf.stream.write_all(&masked(0x8A, b"")).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(outbox.closing(), Some(CloseReason::Gone));
    within_deadline(|| server.connections.sockets() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn publishers_at_once_lose_nothing_and_keep_their_order() {
    let mut server = Server::start(|settings| settings.outbox_bytes_max = 100_000_000).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    let mut client = Raw::open(socket.connect(server.address).await.unwrap()).await;
    let outbox = server.next_opened().await;
    let (publishers, each) = (4, 3000);
    let threads: Vec<_> = (0..publishers)
        .map(|publisher| {
            let outbox = Arc::clone(&outbox);
            std::thread::spawn(move || {
                for at in 0..each {
                    let frame = text_frame(format!("{publisher} {at:<500}").as_bytes());
                    // Each in its way: alone, in a round, in a round that is cut short.
                    match at % 3 {
                        0 => outbox.send(frame).unwrap(),
                        1 => DirtyList::default().offer(&outbox, &frame).unwrap(),
                        _ => {
                            let mut dirty = DirtyList::default();
                            dirty.offer_many(&outbox, std::slice::from_ref(&frame)).unwrap();
                            dirty.flush();
                        }
                    }
                }
            })
        })
        .collect();
    let mut next = vec![0; publishers];
    for _ in 0..publishers * each {
        let Got::Text(text) = client.next().await else { panic!("a text frame") };
        let (publisher, at) = text.trim_end().split_once(' ').unwrap();
        let next = &mut next[publisher.parse::<usize>().unwrap()];
        assert_eq!(at.parse::<usize>().unwrap(), *next);
        *next += 1;
    }
    for thread in threads {
        thread.join().unwrap();
    }
    within_deadline(|| outbox.queued_bytes() == 0).await;
}
