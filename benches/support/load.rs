//! The load of a memcached: gets on some connections, as fast as the answers come or at a steady rate.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// Connections of the load.
pub(crate) const CONNECTIONS: usize = 16;

/// Keys that are asked for in turn, all of them stored.
const KEYS: usize = 1000;

/// Requests of one connection that may wait for their answers, when these come later than the pace wants it: few enough that their bytes
/// always have room in the socket.
const WAITING_MAX: usize = 64;

/// How long memcached may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest sleep while requests are due that their connection has no room for.
const HELD_UP_SLEEP: Duration = Duration::from_millis(100);

/// Where each answer ends.
const ANSWER_END: &[u8] = b"\r\nEND\r\n";

/// The connections of the load, with their keys set.
pub(crate) struct Load {
    streams: Vec<TcpStream>,
    answer_bytes: usize,
    buffer: Vec<u8>,
    next_key: usize,
}

/// What a load came to.
pub(crate) struct Driven {
    /// Those that were sent, all of which were answered.
    pub(crate) requests: u64,
    /// Up to the last answer.
    pub(crate) elapsed: Duration,
    /// At a steady rate, and empty without one: from when a request was due, which is before it was sent if we were held up, to when its
    /// answer was read; microseconds.
    pub(crate) response_micros: Vec<f64>,
}

/// Requests of one connection that wait for their answers.
#[derive(Clone)]
struct Waiting {
    /// When each was due.
    due: VecDeque<Duration>,
    /// Bytes of the first one's answer that have been read.
    received_bytes: usize,
}

impl Load {
    /// Connects from this thread's network namespace, as soon as memcached answers, and stores the values.
    pub(crate) fn open(address: SocketAddr, value_bytes: usize) -> Load {
        let deadline = Instant::now() + PATIENCE;
        let connect = || loop {
            match TcpStream::connect(address) {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
                Err(error) => panic!("memcached does not answer: {error}"),
            }
        };
        let mut streams: Vec<TcpStream> = (0..CONNECTIONS).map(|_| connect()).collect();
        for stream in &streams {
            stream.set_nodelay(true).expect("a TCP socket");
            stream.set_read_timeout(Some(PATIENCE)).expect("a TCP socket");
        }
        let value = "v".repeat(value_bytes);
        let mut stored = [0; 8];
        for key in 0..KEYS {
            let command = format!("set key:{key:06} 0 0 {value_bytes}\r\n{value}\r\n");
            streams[0].write_all(command.as_bytes()).expect("memcached reads");
            streams[0].read_exact(&mut stored).expect("memcached answers");
            assert_eq!(&stored, b"STORED\r\n");
        }
        let answer_bytes =
            format!("VALUE key:000000 0 {value_bytes}\r\n").len() + value_bytes + ANSWER_END.len();
        Load { streams, answer_bytes, buffer: vec![0; answer_bytes.max(64 << 10)], next_key: 0 }
    }

    /// Asks on every connection and reads every answer, over and over.
    pub(crate) fn run(&mut self, length: Duration) -> Driven {
        let (began, mut requests) = (Instant::now(), 0);
        while began.elapsed() < length {
            for stream in &mut self.streams {
                ask(stream, &mut self.next_key);
            }
            for stream in &mut self.streams {
                let answer = &mut self.buffer[..self.answer_bytes];
                stream.read_exact(answer).expect("memcached answers");
                assert!(answer.ends_with(ANSWER_END), "an answer of another length");
                requests += 1;
            }
        }
        Driven { requests, elapsed: began.elapsed(), response_micros: Vec::new() }
    }

    /// Asks so many times a second, on one connection after the other, whether answers have come or not (an open loop), and sleeps in
    /// between. What could not be sent after twice the planned length is given up. There is one request at least.
    pub(crate) fn run_at(&mut self, rate: f64, length: Duration) -> Driven {
        let planned = ((rate * length.as_secs_f64()) as u64).max(1);
        let due = |request: u64| Duration::from_secs_f64(request as f64 / rate);
        let give_up = 2 * length;
        self.set_nonblocking(true);
        let Load { streams, answer_bytes, buffer, next_key } = self;
        let mut entries: Vec<PollFd<'_>> =
            streams.iter().map(|stream| PollFd::new(stream, PollFlags::IN)).collect();
        let new = Waiting { due: VecDeque::with_capacity(WAITING_MAX), received_bytes: 0 };
        let mut waiting = vec![new; CONNECTIONS];
        let mut response_micros = Vec::with_capacity(usize::try_from(planned).expect("a count in memory"));
        let (began, mut elapsed, mut sent) = (Instant::now(), Duration::ZERO, 0);
        loop {
            let now = began.elapsed();
            let is_over = sent == planned || now >= give_up;
            if is_over && response_micros.len() as u64 == sent {
                break;
            }
            let at = sent as usize % CONNECTIONS;
            let has_room = waiting[at].due.len() < WAITING_MAX;
            if !is_over && has_room && due(sent) <= now {
                ask(&mut &streams[at], next_key);
                waiting[at].due.push_back(due(sent));
                sent += 1;
                continue;
            }
            let sleep = match (is_over, has_room) {
                (true, _) => PATIENCE,
                (false, true) => due(sent) - now,
                (false, false) => HELD_UP_SLEEP,
            };
            let sleep = Timespec::try_from(sleep).expect("a short time");
            let ready = poll(&mut entries, Some(&sleep)).expect("sockets can be waited for");
            assert!(ready > 0 || !is_over, "memcached does not answer");
            for at in (0..CONNECTIONS).filter(|at| !entries[*at].revents().is_empty()) {
                for since in waiting[at].answered(&streams[at], buffer, *answer_bytes) {
                    elapsed = began.elapsed();
                    response_micros.push((elapsed - since).as_secs_f64() * 1e6);
                }
            }
        }
        self.set_nonblocking(false);
        Driven { requests: sent, elapsed, response_micros }
    }

    fn set_nonblocking(&self, nonblocking: bool) {
        for stream in &self.streams {
            stream.set_nonblocking(nonblocking).expect("a TCP socket");
        }
    }
}

impl Waiting {
    /// Reads what has come; when the requests were due that are answered by it.
    fn answered(
        &mut self,
        mut stream: &TcpStream,
        buffer: &mut [u8],
        answer_bytes: usize,
    ) -> impl Iterator<Item = Duration> {
        let read = match stream.read(buffer) {
            Ok(0) => panic!("memcached has closed a connection"),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => panic!("memcached does not answer: {error}"),
        };
        self.received_bytes += read;
        let answers = self.received_bytes / answer_bytes;
        self.received_bytes %= answer_bytes;
        assert!(answers <= self.due.len(), "more answers than requests");
        let is_at_end = self.received_bytes == 0 && read >= ANSWER_END.len();
        assert!(!is_at_end || buffer[..read].ends_with(ANSWER_END), "an answer of another length");
        self.due.drain(..answers)
    }
}

/// Sends the next request.
fn ask(stream: &mut impl Write, next_key: &mut usize) {
    *next_key = (*next_key + 7) % KEYS;
    let request = format!("get key:{next_key:06}\r\n");
    stream.write_all(request.as_bytes()).expect("memcached reads");
}
