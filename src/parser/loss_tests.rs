//! Conversations with holes, and conversations found in the middle.

use super::conversation::{Knowledge, Wire};
use super::{Connection, ParserLimits};
use crate::anomaly::Anomaly;
use crate::model::{Direction, Transport};
use std::time::Duration;

#[track_caller]
fn check(wire: &mut Wire, expected: &str, confessions: &str) {
    wire.close();
    let expected: String =
        expected.lines().map(str::trim).filter(|l| !l.is_empty()).flat_map(|l| [l, "\n"]).collect();
    assert_eq!(wire.report(), expected);
    assert_eq!(wire.confessions(), confessions);
}

/// A flow in mid-stream whose server was seen while the client went on: an anchor that may be wrong.
fn doubtful() -> Wire {
    let mut wire = Wire::midstream();
    wire.server(b"tail of a value\r\nEND\r\n").client(b"middle of a value");
    wire
}

#[test]
fn midstream_takes_up_at_the_first_idle_request() {
    let mut wire = Wire::midstream();
    wire.client(b"middle of a body\r\nget no\r\n").server(b"STORED\r\n");
    wire.client(b"get a\r\n").server(b"VALUE a 0 1\r\nx\r\nEND\r\n");
    check(&mut wire, "get a hit 7/21", "unparsed_bytes=34");
}

#[test]
fn midstream_does_not_believe_what_could_be_a_body() {
    for line in [
        "get \x01\r\n",
        "get\r\n",
        "get a\n",
        "Get a\r\n",
        "set a 0 0 x\r\n",
        "set a 0 0 3\r\nabcd\r\n",
        "set a 0 0 3 4 5 noreply\r\n",
        "hello world\r\n",
        "gat 60\r\n",
        "get a",
    ] {
        let mut wire = Wire::midstream();
        wire.client(line.as_bytes());
        check(&mut wire, "", &format!("unparsed_bytes={}", line.len()));
    }
}

#[test]
fn midstream_does_not_believe_a_client_that_waits() {
    let mut wire = Wire::midstream();
    wire.server(b"VALUE a 0 1\r\n");
    wire.segment(Direction::ToServer, b"get b\r\n", Knowledge { behind: 3 });
    assert!(wire.connection.client_lost);
    check(&mut wire, "", "unparsed_bytes=20");
}

#[test]
fn gap_in_requests() {
    let mut wire = Wire::new();
    wire.client(b"get a\r\nget b").gap(Direction::ToServer, 30).server(b"END\r\n");
    wire.client(b"ody\r\n");
    wire.client(b"get c\r\n").server(b"END\r\n");
    wire.client(b"version\r\n").server(b"VERSION 1\r\n");
    check(
        &mut wire,
        "get a miss 7/5
         get c miss 7/5
         version - ok 9/11",
        "unparsed_bytes=5",
    );
}

#[test]
fn gap_within_a_key_list() {
    let mut wire = Wire::new();
    wire.client(b"get a b cc").gap(Direction::ToServer, 30);
    wire.server(b"VALUE b 0 1\r\nx\r\nVALUE ccc 0 1\r\nx\r\nEND\r\n");
    check(
        &mut wire,
        "get a unseen 5/0
         get b hit 2/16",
        "unparsed_bytes=23 unmatched_requests=1 unmatched_responses=1 resynchronised=1",
    );
}

#[test]
fn gap_within_a_body_costs_nothing() {
    let mut wire = Wire::new();
    wire.client(b"set a 0 0 100\r\nxxx").gap(Direction::ToServer, 99).client(b"get a\r\n");
    wire.server(b"STORED\r\nVALUE a 0 100\r\n").gap(Direction::ToClient, 102).server(b"END\r\n");
    check(
        &mut wire,
        "set a stored 117/8
         get a hit 7/122",
        "",
    );
}

#[test]
fn gap_in_answers_leaves_requests_counted() {
    let mut wire = Wire::new();
    wire.client(b"get a\r\nset b 0 0 1\r\nx\r\n").gap(Direction::ToClient, 20);
    wire.server(b"END\r\n");
    wire.segment(Direction::ToServer, b"get c\r\n", Knowledge { behind: 5 });
    wire.client(b"get d\r\n").server(b"END\r\n");
    wire.client(b"version\r\n").server(b"VERSION 1\r\n");
    check(
        &mut wire,
        "get a unseen 7/0
         set b unseen 16/0
         get c unseen 7/0
         get d miss 7/5
         version - ok 9/11",
        "unparsed_bytes=5 unmatched_requests=3",
    );
}

#[test]
fn hits_before_a_gap_are_kept() {
    let mut wire = Wire::new();
    wire.client(b"get a b\r\n").server(b"VALUE a 0 1\r\nx\r\nVAL").gap(Direction::ToClient, 20);
    check(
        &mut wire,
        "get a hit 5/16
         get b unseen 4/0",
        "unmatched_requests=1",
    );
}

#[test]
fn doubtful_pairing_waits_for_proof() {
    // Not even a value that was asked for proves it: values hold such lines.
    let mut wire = doubtful();
    wire.client(b"get a\r\nget b\r\n").server(b"END\r\n");
    assert_eq!(wire.report(), "");
    wire.server(b"VALUE b 0 1\r\nx\r\nEND\r\n");
    assert_eq!(wire.report(), "");
    // What does is a client that waits for nothing when we know of nothing.
    let mut wire = doubtful();
    wire.client(b"get a\r\n").server(b"END\r\n");
    assert_eq!(wire.report(), "");
    wire.client(b"get b\r\n");
    assert_eq!(wire.report(), "get a miss 7/5\n");
}

#[test]
fn doubtful_pairing_that_is_contradicted_tells_nothing() {
    for contradiction in ["STORED\r\n", "VALUE x 0 1\r\nx\r\n", "garbage\r\n"] {
        let mut wire = doubtful();
        wire.client(b"get a\r\nget b\r\n").server(b"END\r\n").server(contradiction.as_bytes());
        assert_eq!(wire.report(), "get a unseen 7/5\nget b unseen 7/0\n");
        assert!(wire.connection.client_lost && wire.connection.server_lost);
        assert!(wire.confessions().contains("resynchronised=1"));
    }
}

#[test]
fn doubtful_outcomes_are_held_within_bounds() {
    let mut wire = doubtful();
    let requests = "get a\r\n".repeat(70);
    wire.client(requests.as_bytes()).server("END\r\n".repeat(70).as_bytes());
    assert_eq!(wire.report(), "get a unseen 7/5\n".repeat(6));
    wire.client(b"get b\r\n");
    assert!(wire.report().ends_with("get a miss 7/5\n"));
}

#[test]
fn an_answer_cannot_acknowledge_less_than_its_request() {
    let mut wire = Wire::new();
    wire.client(b"get a\r\n");
    wire.segment(Direction::ToClient, b"END\r\n", Knowledge { behind: 3 });
    wire.client(b"get b\r\n").server(b"END\r\n");
    wire.client(b"version\r\n").server(b"VERSION 1\r\n");
    check(
        &mut wire,
        "get a unseen 7/0
         get b miss 7/5
         version - ok 9/11",
        "unparsed_bytes=5 unmatched_requests=1 unmatched_responses=1 resynchronised=1",
    );
}

#[test]
fn an_answer_that_nobody_asked_for_loses_the_server() {
    let mut wire = Wire::new();
    wire.client(b"get a\r\n").server(b"VALUE b 0 1\r\nx\r\nEND\r\n");
    wire.client(b"get c\r\n").server(b"END\r\n");
    check(
        &mut wire,
        "get a unseen 7/0
         get c miss 7/5",
        "unparsed_bytes=21 unmatched_requests=1 unmatched_responses=1 resynchronised=1",
    );
}

#[test]
fn answers_alone_still_name_their_hits() {
    let mut wire = Wire::midstream();
    wire.gap(Direction::ToServer, 7);
    wire.server(b"VALUE a 0 1\r\nx\r\nEND\r\n").server(b"STORED\r\n");
    wire.server(b"VALUE b 0 5000\r\nxxx").gap(Direction::ToClient, 4999).server(b"END\r\n");
    check(
        &mut wire,
        "get a hit 0/16 unasked
         get b hit 0/5018 unasked",
        "unmatched_responses=3",
    );
}

#[test]
fn answers_alone_are_not_taken_from_the_middle_of_a_body() {
    let mut wire = Wire::midstream();
    wire.server(b"VALUE a 0 1\r\nxyz\r\n").server(b"STORED\r\n").server(b"VALUE a 0 x\r\n");
    check(&mut wire, "", "unparsed_bytes=39");
}

#[test]
fn requests_alone_are_told_promptly() {
    let mut wire = Wire::new();
    for _ in 0..4 {
        wire.client(b"get a\r\n");
    }
    assert_eq!(wire.report(), "");
    wire.advance(2_000_000);
    wire.client(b"get a b\r\n");
    assert_eq!(wire.seen.len(), 6);
    wire.client(b"get c\r\n");
    assert_eq!(wire.seen.len(), 7);
    // The server appears after all.
    wire.server(b"END\r\n").client(b"get d\r\n").server(b"END\r\n");
    assert!(wire.report().ends_with("get d miss 7/5\n"));
    wire.close();
}

#[test]
fn requests_after_the_server_has_closed_wait_for_nothing() {
    let mut wire = Wire::new();
    wire.client(b"get a\r\n").server(b"END\r\n").client(b"get b\r\n").end(Direction::ToClient);
    wire.client(b"get c\r\n");
    assert_eq!(wire.report(), "get a miss 7/5\nget b unseen 7/0\nget c unseen 7/0\n");
    wire.close();
}

#[test]
fn a_full_queue_sheds_and_recovers() {
    let limits = ParserLimits { requests_max: 4, ..ParserLimits::default() };
    let mut wire = Wire::with_limits(limits);
    wire.client(b"get a\r\nget b c d e f\r\n").server(b"END\r\nEND\r\n");
    wire.client(b"get g\r\n").server(b"END\r\n");
    wire.close();
    let outcomes: Vec<&str> = wire.seen.iter().map(|seen| seen.outcome.name()).collect();
    assert_eq!(outcomes, ["unseen", "unseen", "unseen", "unseen", "unseen", "unseen", "miss"]);
    assert!(wire.confessions().contains("requests_shed=5"), "{}", wire.confessions());
}

#[test]
fn a_line_without_end_is_given_up() {
    let mut wire = Wire::new();
    wire.client(&[b'x'; 1500]).client(&[b'y'; 1500]).client(b"get a\r\n").server(b"END\r\n");
    // Only the second exchange shows that the first was one.
    assert_eq!(wire.report(), "");
    wire.client(b"get b\r\n").server(b"END\r\n");
    check(
        &mut wire,
        "get a miss 7/5
         get b miss 7/5",
        "unparsed_bytes=3000 resynchronised=1 lines_too_long=1",
    );
}

#[test]
fn what_looks_like_requests_before_the_server_was_heard_waits_for_an_answer_that_fits() {
    // The inside of a value, whose store is answered then.
    let mut wire = Wire::midstream();
    wire.client(b"get forged\r\nset forged2 0 0 1 noreply\r\nx\r\n").server(b"STORED\r\n");
    wire.client(b"get a\r\n").server(b"END\r\n").client(b"get b\r\n").server(b"END\r\n");
    assert!(!wire.report().contains("forged"), "{}", wire.report());
    wire.close();
    assert_eq!(wire.count_of(Anomaly::UnmatchedRequest), 2);
    // The same bytes, answered as requests are.
    let mut wire = Wire::midstream();
    wire.client(b"get a\r\nset b 0 0 1 noreply\r\nx\r\n")
        .server(b"END\r\n")
        .client(b"get c\r\n")
        .server(b"END\r\n");
    check(
        &mut wire,
        "get a miss 7/5
         set b unseen 24/0 quiet
         get c miss 7/5",
        "",
    );
}

#[test]
fn a_client_in_mid_stream_whose_server_is_not_captured_is_believed_after_a_while() {
    let mut wire = Wire::midstream();
    for _ in 0..4 {
        wire.client(b"set k 0 0 1 noreply\r\nx\r\n");
    }
    assert_eq!(wire.report(), "");
    wire.advance(1_000_000);
    wire.client(b"get a\r\n");
    assert_eq!(wire.report().lines().count(), 5, "{}", wire.report());
}

#[test]
fn datagrams_choose_their_protocol_each() {
    let mut wire = Wire::new();
    wire.tuple.transport = Transport::Udp;
    wire.client(b"get a b\r\n").server(b"VALUE b 0 1\r\nx\r\n").server(b"END\r\n");
    let mut noop = [0; 24];
    (noop[0], noop[1]) = (0x80, 0x0a);
    wire.client(&noop);
    noop[0] = 0x81;
    wire.segment(Direction::ToClient, &noop, Knowledge { behind: 10 });
    check(
        &mut wire,
        "get a miss 5/0
         get b hit 4/21
         noop - ok 24/24",
        "",
    );
}

#[test]
fn a_connection_is_small() {
    assert!(size_of::<Connection>() <= 192);
    assert_eq!(ParserLimits::default().one_sided_after, Duration::from_secs(1));
}
