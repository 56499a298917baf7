//! What depends on the server: its generation, and that it closes when it is told to.
//!
//! What servers do was probed on 1.6.18 and read in the source of 1.6.45.

use super::ParserLimits;
use super::binary_tests::{a, q};
use super::conversation::{Turn, Wire, c, check, check_with, s};
use crate::anomaly::Anomaly;
use crate::model::{Direction, Transport};

const ASKS: &[u8] = b"version\r\n";
const NEW: &[u8] = b"VERSION 1.6.41\r\n";
const OLD: &[u8] = b"VERSION 1.6.39\r\n";

/// What a get whose key holds a NUL is taken for: old servers end the line there.
fn key_with_nul(wire: &mut Wire) -> Vec<u8> {
    wire.client(b"get a\0b\r\n").server(b"END\r\n");
    wire.seen.last().expect("one observation").key.clone()
}

#[test]
fn later_connections_to_a_server_follow_the_version_that_it_told() {
    let mut wire = Wire::new();
    assert_eq!(key_with_nul(&mut wire), b"a");
    wire.reconnect(1).client(ASKS).server(NEW);
    assert_eq!(key_with_nul(&mut wire), b"a\0b");
    assert_eq!(key_with_nul(wire.reconnect(1)), b"a\0b");
    assert_eq!(key_with_nul(wire.reconnect(2)), b"a", "another server");
    // It is replaced by an older one.
    wire.reconnect(1).client(ASKS).server(OLD);
    assert_eq!(key_with_nul(&mut wire), b"a");
    assert_eq!(key_with_nul(wire.reconnect(1)), b"a");
}

/// The connections of a pool are with several workers, and a server is asked on one of them.
#[test]
fn workers_know_what_servers_told_others() {
    let mut told = Wire::new();
    let [mut before, mut after] = [(); 2].map(|()| {
        let mut wire = Wire::new();
        wire.transactions = told.transactions.beside();
        wire
    });
    assert_eq!(key_with_nul(&mut before), b"a");
    told.client(ASKS).server(NEW);
    assert_eq!(key_with_nul(&mut after), b"a\0b");
    assert_eq!(key_with_nul(&mut before), b"a", "a connection keeps its rules");
    assert_eq!(key_with_nul(before.reconnect(1)), b"a\0b");
    after.reconnect(1).client(ASKS).server(OLD);
    assert_eq!(key_with_nul(told.reconnect(1)), b"a");
}

#[test]
fn a_version_told_in_the_binary_protocol_holds_for_text_too() {
    for (version, key) in [("1.6.45", &b"a\0b"[..]), ("1.6.18", b"a")] {
        let mut wire = Wire::new();
        wire.client(&q(0x0b, "").bytes());
        wire.server(&a(0x0b, 0).value(version.as_bytes()).bytes());
        assert_eq!(wire.report(), format!("version - ok 24/{}\n", 24 + version.len()));
        assert_eq!(key_with_nul(wire.reconnect(1)), key);
    }
}

#[test]
fn a_version_inside_a_value_does_not_speak_for_the_server() {
    let mut wire = Wire::midstream();
    // The middle of a store whose value holds a conversation.
    wire.client(ASKS).server(NEW);
    assert_eq!(key_with_nul(wire.reconnect(1)), b"a");
    // Nobody asked.
    wire.reconnect(1).server(NEW);
    assert_eq!(key_with_nul(wire.reconnect(1)), b"a");
}

#[test]
fn servers_beyond_the_limit_keep_the_older_rules_and_are_counted() {
    let limits = ParserLimits { servers_max: 1, requests_max: 16, ..ParserLimits::default() };
    let mut wire = Wire::with_limits(limits);
    for server in [1, 1, 2] {
        wire.reconnect(server).client(ASKS).server(NEW);
    }
    assert_eq!(wire.count_of(Anomaly::ServerVersionShed), 1);
    assert_eq!(key_with_nul(wire.reconnect(1)), b"a\0b");
    assert_eq!(key_with_nul(wire.reconnect(2)), b"a");
}

#[test]
fn new_servers_swallow_the_body_of_a_refused_store_and_old_ones_answer_it() {
    let long = "k".repeat(251);
    let turns = |version: &str, errors: &str| {
        [
            c("version\n"),
            s(&format!("VERSION {version}\n")),
            c(&format!("set {long} 0 0 5\nhello\nnonsense\nget a\n")),
            s(&format!("CLIENT_ERROR bad command line format\n{errors}END\n")),
        ]
    };
    let seen = "version - ok 9/16
         unknown - error 270/38
         unknown - error 10/7
         get a miss 7/5";
    check(&turns("1.6.41", "ERROR\n"), seen);
    check(&turns("1.6.39", "ERROR\nERROR\n"), seen);
}

#[test]
fn only_old_servers_answer_the_body_of_a_refused_store_without_reply() {
    let long = "k".repeat(251);
    let request = format!("set {long} 0 0 5 noreply\nhello\nget a\n");
    check(
        &[c(&request), s("ERROR\nEND\n"), c("get b\n"), s("END\n")],
        "unknown - error 278/7 quiet
         get a miss 7/5
         get b miss 7/5",
    );
    // One whose version is not known may be new.
    let silent = "unknown - unseen 278/0 quiet
         get a miss 7/5";
    check(&[c(&request), s("END\n")], silent);
    check(
        &[c("version\n"), s("VERSION 1.6.41\n"), c(&request), s("END\n")],
        &format!("version - ok 9/16\n{silent}"),
    );
}

#[test]
fn new_servers_read_no_command_behind_a_space() {
    let old = [c("  get a\n delete b\n"), s("END\nDELETED\n")];
    check(&old, "get a miss 9/5\ndelete b hit 11/9");
    let [asks, tells] = [c("version\n"), s("VERSION 1.6.41\n")];
    check(
        &[asks, tells, c("  get a\n delete b\nget c\n"), s("ERROR\nERROR\nEND\n")],
        "version - ok 9/16
         unknown - error 9/7
         unknown - error 11/7
         get c miss 7/5",
    );
}

#[test]
fn new_servers_are_silent_about_a_quiet_increment_that_creates_its_item() {
    let requests = c("ma a N0 q\nma b\nmn\n");
    check(
        &[requests.clone(), s("HD\nHD\nMN\n")],
        "ma a stored 11/4 quiet
         ma b hit 6/4
         mn - ok 4/4",
    );
    // Whether it counted or created cannot be known.
    check(
        &[c("version\n"), s("VERSION 1.6.41\n"), requests, s("HD\nMN\n")],
        "version - ok 9/16
         ma a unseen 11/0 quiet
         ma b hit 6/4
         mn - ok 4/4",
    );
}

#[test]
fn what_follows_quit_is_never_executed() {
    for quit in ["quit", "quit now"] {
        check(
            &[
                c(&format!("get a\n{quit}\nget b\nset c 0 0 1\nx\n")),
                s("VALUE a 0 1\nx\nEND\n"),
                c("get d\n"),
            ],
            &format!("quit - unseen {}/0 quiet\nget a hit 7/21", quit.len() + 2),
        );
    }
    check_with(
        &[c("get a\nquit\nget b\n")],
        "quit - unseen 6/0 quiet\nget a unseen 7/0",
        "unmatched_requests=1",
    );
}

#[test]
fn what_follows_a_binary_quit_is_never_executed() {
    let get = q(0x00, "a").bytes();
    let miss = Turn::Server(a(0x00, 1).value(b"Not found").bytes());
    let quit = |opcode| Turn::Client([get.clone(), q(opcode, "").bytes(), get.clone()].concat());
    let goodbye = Turn::Server(a(0x07, 0).bytes());
    check(&[quit(0x07), miss.clone(), goodbye], "get a miss 25/33\nquit - ok 24/24");
    check(&[quit(0x17), miss], "get a miss 25/33\nquit - unseen 24/0 quiet");
}

#[test]
fn quit_on_udp_ends_its_datagram_only() {
    let mut wire = Wire::new();
    wire.tuple.transport = Transport::Udp;
    wire.client(b"get a\r\nquit\r\nget b\r\n").server(b"END\r\n").client(b"get c\r\n").server(b"END\r\n");
    assert_eq!(wire.report(), "quit - unseen 6/0 quiet\nget a miss 7/5\nget c miss 7/5\n");
}

#[test]
fn quit_is_forgotten_where_the_server_talks_on_or_bytes_are_missing() {
    // The next connection on the same ports, whose SYN was lost.
    let mut wire = Wire::new();
    wire.client(b"get a\r\nquit\r\n").server(b"END\r\n");
    wire.gap(Direction::ToServer, 1000).gap(Direction::ToClient, 1000);
    wire.client(b"get b\r\n").server(b"END\r\n").client(b"get c\r\n").server(b"END\r\n");
    assert!(wire.report().ends_with("get c miss 7/5\n"), "{}", wire.report());
    // An answer after the last one that was due.
    let mut wire = Wire::new();
    wire.client(b"quit\r\n").client(b"get a\r\n").server(b"VALUE a 0 1\r\nx\r\nEND\r\n");
    wire.client(b"get b\r\n").server(b"END\r\n");
    assert_eq!(wire.report(), "quit - unseen 6/0 quiet\nget b miss 7/5\n");
}
