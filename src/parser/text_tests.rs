//! Classic text conversations.

use super::conversation::{Turn, Wire, c, check, check_with, converse, s};
use super::text::is_new_version;
use crate::model::Direction;
use std::time::Duration;

#[test]
fn get_hits_and_misses() {
    check(
        &[c("get a\n"), s("VALUE a 0 5\nhello\nEND\n"), c("get b\n"), s("END\n")],
        "get a hit 7/25
         get b miss 7/5",
    );
}

#[test]
fn multiget_shares_out_its_bytes() {
    check(
        &[
            c("gets a bb  a c \n"),
            s("VALUE a 0 1 77\nx\nVALUE a 0 1 77\nx\nEND\n"),
            c("gat 60 k1 k2\n"),
            s("VALUE k2 3 0\n\nEND\n"),
            c("gats 60 k1\n"),
            s("VALUE k1 0 2 9\nhi\nEND\n"),
        ],
        "gets a hit 6/19
         gets bb miss 3/0
         gets a hit 3/19
         gets c miss 5/5
         gat k1 miss 9/0
         gat k2 hit 5/21
         gats k1 hit 12/25",
    );
}

#[test]
fn storage() {
    check(
        &[
            c("set k 5 0 3\nabc\n"),
            s("STORED\n"),
            c("add k 0 0 0\n\nreplace k 0 0 1\nx\nappend k 0 0 1\nx\nprepend k 0 0 1\nx\n"),
            s("NOT_STORED\nSTORED\nSTORED\nSTORED\n"),
            c("cas k 0 0 2 99\nhi\ncas k 0 0 2 99\nhi\ncas n 0 0 2 99\nhi\n"),
            s("STORED\nEXISTS\nNOT_FOUND\n"),
        ],
        "set k stored 18/8
         add k not_stored 15/12
         replace k stored 20/8
         append k stored 19/8
         prepend k stored 20/8
         cas k stored 20/8
         cas k exists 20/8
         cas n not_found 20/11",
    );
}

#[test]
fn deletion_arithmetic_touch() {
    check(
        &[
            c("delete a\ndelete a\nincr n 1\nincr m 1\ndecr s 1\ntouch a 0\ntouch b 0\ndelete a 0\n"),
            s(
                "DELETED\nNOT_FOUND\n8\nNOT_FOUND\nCLIENT_ERROR cannot increment or decrement non-numeric value\n",
            ),
            s("TOUCHED\nNOT_FOUND\nDELETED\n"),
        ],
        "delete a hit 10/9
         delete a miss 10/11
         incr n hit 10/3
         incr m miss 10/11
         decr s error 10/62
         touch a hit 11/9
         touch b miss 11/11
         delete a hit 12/9",
    );
}

#[test]
fn keyless_commands() {
    check(
        &[
            c("version\n"),
            s("VERSION 1.6.18\n"),
            c("stats\n"),
            s("STAT pid 1\nSTAT uptime 2\nEND\n"),
            c("stats reset\nstats nonsense\nflush_all\nverbosity 1\nlru_crawler crawl all\n"),
            s("RESET\nERROR\nOK\nOK\nBUSY currently processing crawler request\n"),
            c("lru_crawler metadump all\n"),
            Turn::Server(b"OK\r\nkey=a exp=-1 la=1 cas=1 fetch=no cls=1 size=63\nEND\r\n".to_vec()),
            c("mn\n\nquit\n"),
            s("MN\nERROR\n"),
        ],
        "version - ok 9/16
         stats - ok 7/32
         stats - ok 13/7
         stats - error 16/7
         flush_all - ok 11/4
         verbosity - ok 13/4
         lru_crawler - ok 23/43
         lru_crawler - ok 26/56
         quit - unseen 6/0 quiet
         mn - ok 4/4
         unknown - error 2/7",
    );
}

#[test]
fn noreply_is_counted_at_once() {
    check(
        &[
            c("set k 0 0 1 noreply\nx\ndelete k noreply\nincr k 1 noreply\nflush_all noreply\nget k\n"),
            s("END\n"),
            c("set k 0 0 1048517 noreply\n"),
        ],
        "set k unseen 24/0 quiet
         delete k unseen 18/0 quiet
         incr k unseen 18/0 quiet
         flush_all - unseen 19/0 quiet
         get k miss 7/5
         set k too_large 1048546/0 quiet",
    );
}

#[test]
fn noreply_counts_only_as_the_last_token_and_only_spelled_so() {
    check(
        &[c("delete k noreplY\nset noreply 0 0 1\nx\n"), s("DELETED\nSTORED\n")],
        "delete k hit 18/9
         set noreply stored 22/8",
    );
}

#[test]
fn largest_item_by_the_byte() {
    let fits = 1_048_516;
    for (length, flags, outcome) in [(fits, 0, "unseen"), (fits + 1, 0, "too_large"), (fits, 1, "too_large")]
    {
        let mut wire = Wire::new();
        wire.client(format!("set k {flags} 0 {length} noreply\r\n").as_bytes());
        assert!(wire.report().contains(outcome), "{}", wire.report());
    }
}

#[test]
fn refusal_may_come_before_the_body() {
    let mut wire = Wire::new();
    wire.client(b"set k 0 0 2000000\r\n").server(b"SERVER_ERROR object too large for cache\r\n");
    wire.client(&[b'x'; 2_000_000]).client(b"\r\nget k\r\n").server(b"END\r\n").close();
    assert_eq!(wire.report(), "set k too_large 2000021/41\nget k miss 7/5\n");
    assert_eq!(wire.confessions(), "");
}

#[test]
fn old_servers_answer_a_refused_body_as_a_command() {
    let long = "k".repeat(251);
    check(
        &[
            c(&format!("set {long} 0 0 5\nhello\nget a\n")),
            s("CLIENT_ERROR bad command line format\nERROR\nEND\n"),
            c(&format!("set {long} 0 0 5\nhello\nget a\n")),
            s("CLIENT_ERROR bad command line format\nEND\n"),
        ],
        "unknown - error 270/38
         get a miss 7/5
         unknown - error 270/38
         get a miss 7/5",
    );
}

#[test]
fn overlong_key_of_a_get() {
    let long = "k".repeat(251);
    check(
        &[
            c(&format!("get a {long} b\n")),
            s("CLIENT_ERROR bad command line format\n\n"),
            c(&format!("get {long}\nget\nget c\n")),
            s("CLIENT_ERROR bad command line format\n\nERROR\nEND\n"),
        ],
        "get a error 5/0
         get b error 256/38
         unknown - error 257/38
         unknown - error 5/7
         get c miss 7/5",
    );
}

#[test]
fn freed_answers_are_passed_over() {
    // An overlong key frees the answers that are still queued on the connection.
    let long = "k".repeat(251);
    check_with(
        &[c("version\ndelete a\nget b\n"), s("END\n"), c(&format!("get {long}\n")), s("ERROR\n")],
        "version - unseen 9/0
         delete a unseen 10/0
         get b miss 7/5
         unknown - error 257/7",
        "unmatched_requests=2",
    );
}

#[test]
fn endless_key_list_needs_no_carry() {
    let keys: Vec<String> = (0..7200).map(|n| format!("key{n:05}")).collect();
    let mut wire = Wire::with_limits(super::ParserLimits::default());
    let line = format!("get {}\r\n", keys.join(" "));
    for piece in line.as_bytes().chunks(100) {
        wire.client(piece);
    }
    wire.server(b"VALUE key00007 0 1\r\nx\r\nVALUE key07199 0 1\r\nx\r\nEND\r\n").close();
    assert_eq!(wire.seen.len(), 7200);
    assert_eq!(wire.seen.iter().map(|seen| seen.request_bytes).sum::<u64>(), line.len() as u64);
    let hits: Vec<_> = wire.seen.iter().filter(|seen| seen.outcome == crate::model::Outcome::Hit).collect();
    assert_eq!(hits.iter().map(|seen| &seen.key[..]).collect::<Vec<_>>(), [b"key00007", b"key07199"]);
    assert!(wire.carry_max < 20, "{}", wire.carry_max);
}

#[test]
fn bodies_are_never_searched() {
    let forged = "get forged\nEND\nVALUE x 0 1\nset y 0 0 1\nmn\n";
    let length = forged.replace('\n', "\r\n").len();
    assert_eq!(length, 47);
    check(
        &[
            c(&format!("set k 0 0 {length}\n{forged}\n")),
            s("STORED\n"),
            c("get k\n"),
            s(&format!("VALUE k 0 {length}\n{forged}\nEND\n")),
        ],
        "set k stored 63/8
         get k hit 7/68",
    );
}

#[test]
fn answers_out_of_order_within_a_multiget() {
    check(
        &[c("get a b c\n"), s("VALUE c 0 1\nx\nVALUE a 0 1\nx\nEND\n")],
        "get a hit 5/16
         get b miss 2/0
         get c hit 4/21",
    );
}

#[test]
fn watch_is_no_conversation() {
    check(
        &[c("watch fetchers\n"), s("OK\nts=1 gid=1 type=item_get key=a\n"), s("get b\n")],
        "watch - ok 16/4",
    );
}

#[test]
fn too_many_connections_is_said_unasked() {
    check_with(&[s("ERROR Too many open connections\n")], "", "unmatched_responses=1");
}

#[test]
fn closed_before_the_answer() {
    check_with(
        &[c("get a b\nset k 0 0 1\nx\n"), s("VALUE a 0 1\nx\n")],
        "get a hit 5/16
         get b unseen 4/0
         set k unseen 16/0",
        "unmatched_requests=2",
    );
}

#[test]
fn http_and_other_strangers() {
    let wire = converse(&[c("GET / HTTP/1.1\nHost: x\n\n")], || usize::MAX);
    assert_eq!(
        (wire.report().as_str(), wire.confessions().as_str()),
        ("", "unparsed_bytes=27 unknown_protocol_flows=1")
    );
    let wire = converse(
        &[Turn::Client(b"\x16\x03\x01\x02\0\x01".to_vec()), Turn::Server(b"\x16\x03\x03".to_vec())],
        || 1,
    );
    assert_eq!(wire.confessions(), "unparsed_bytes=9 tls_flows=1");
    let redis = "*1\n$4\nPING\n".repeat(4);
    let wire = converse(&[c(&redis)], || usize::MAX);
    assert_eq!(wire.count_of(crate::anomaly::Anomaly::UnknownProtocolFlow), 1);
}

#[test]
fn latency_runs_from_the_completing_packet_to_the_first_of_the_answer() {
    let mut wire = Wire::new();
    wire.client(b"get a").client(b" b\r\n");
    wire.advance(90);
    wire.server(b"VAL");
    wire.advance(1000);
    wire.server(b"UE a 0 1\r\nx\r\n").server(b"END\r\n");
    let latencies: Vec<_> = wire.seen.iter().map(|seen| seen.latency).collect();
    assert_eq!(latencies, [Some(Duration::from_micros(100)); 2]);
    assert_eq!(wire.seen[0].timestamp, wire.seen[1].timestamp);
}

#[test]
fn latency_of_a_store_runs_from_the_packet_that_completes_its_body() {
    let mut wire = Wire::new();
    wire.client(b"set k 0 0 10\r\n012");
    wire.advance(500);
    wire.client(b"345").client(b"6789\r\n");
    wire.advance(20);
    wire.server(b"STORED\r\n");
    // A body that is refused before it has come, and one of a later packet.
    wire.client(b"set l 0 0 10\r\n01")
        .server(b"SERVER_ERROR object too large for cache\r\n")
        .client(b"23456789\r\n");
    wire.client(b"set m 0 0 2\r\nx").client(b"y\r\nget n\r\n");
    wire.advance(40);
    wire.server(b"STORED\r\nEND\r\n");
    let latencies: Vec<_> =
        wire.seen.iter().map(|seen| seen.latency.map(|latency| latency.as_micros())).collect();
    assert_eq!(latencies, [Some(30), None, Some(50), Some(50)]);
}

#[test]
fn no_latency_where_none_can_be_told() {
    let mut wire = Wire::new();
    wire.client(b"set k 0 0 1 noreply\r\nx\r\n").client(b"set k 0 0 1\r\nx\r\n").server(b"STORED\r\n");
    // The end of the body was not captured.
    wire.client(b"set k 0 0 10\r\n01234").gap(Direction::ToServer, 7).server(b"STORED\r\n");
    let latencies: Vec<_> = wire.seen.iter().map(|seen| seen.latency.is_some()).collect();
    assert_eq!(latencies, [false, true, false]);
    assert_eq!(wire.report().lines().last(), Some("set k stored 26/8"));
}

#[test]
fn proxy_headers_are_passed_over() {
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\0\0\x01\x0a\0\0\x02\x9c\x40\x2b\xcb";
    for header in [&b"PROXY TCP4 10.0.0.1 10.0.0.2 40000 11211\r\n"[..], v2] {
        for (errors, piece) in [("", 1), ("", 500), ("ERROR\r\n", 1), ("ERROR\r\n", 500)] {
            let request = [header, b"get a b\r\n"].concat();
            let answer = format!("{errors}VALUE b 0 1\r\nx\r\nEND\r\n").into_bytes();
            let wire = converse(&[Turn::Client(request), Turn::Server(answer)], || piece);
            assert_eq!(wire.report(), "get a miss 5/0\nget b hit 4/21\n");
            assert_eq!(wire.confessions(), "proxy_headers=1");
        }
    }
    // Inside of a connection it is a line like any other.
    check(&[c("get a\nPROXY x\n"), s("END\nERROR\n")], "get a miss 7/5\nunknown - error 9/7");
    check(&[c("\nget a\n"), s("ERROR\nEND\n")], "unknown - error 2/7\nget a miss 7/5");
}

#[test]
fn lines_end_at_a_bare_newline_and_old_servers_stop_at_a_nul() {
    let turn = |text: &str| Turn::Client(text.as_bytes().to_vec());
    check(&[turn("get a\nset b 0 0 1\nx\r\n"), s("END\nSTORED\n")], "get a miss 6/5\nset b stored 15/8");
    check(
        &[turn("get a\0b c\r\ndelete d\0e\r\nget f\r\n"), s("END\nDELETED\nEND\n")],
        "get a miss 11/5\ndelete d hit 12/9\nget f miss 7/5",
    );
    // Since 1.6.40 a line is no C string.
    check(
        &[c("version\n"), s("VERSION 1.6.41\n"), turn("get a\0b c\r\n"), s("END\n")],
        "version - ok 9/16\nget a\\x00b miss 7/0\nget c miss 4/5",
    );
    assert!(!is_new_version(b"1.6.39_beta1") && !is_new_version(b"1.5.22"));
    assert!(is_new_version(b"1.6.40") && is_new_version(b"2.0") && !is_new_version(b"x"));
}

#[test]
fn lengths_that_no_server_takes() {
    for length in ["-1", "2147483646", "4294967295", "18446744073709551616", "99999999999999999999999", "0x5"]
    {
        check(
            &[c(&format!("set k 0 0 {length}\nget a\n")), s("CLIENT_ERROR bad data chunk\nEND\n")],
            &format!("set k error {}/29\nget a miss 7/5", 12 + length.len()),
        );
    }
}
