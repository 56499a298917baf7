//! Conversations in the binary protocol.

use super::binary::is_strict_request;
use super::conversation::{Turn, Wire, check, check_with};
use crate::model::Direction;

pub(super) struct Frame {
    magic: u8,
    opcode: u8,
    status: u16,
    opaque: u32,
    cas: u64,
    extras: Vec<u8>,
    key: Vec<u8>,
    value: Vec<u8>,
}

pub(super) fn q(opcode: u8, key: &str) -> Frame {
    let extras = match opcode {
        1..=3 | 0x11..=0x13 => 8,
        5 | 6 | 0x15 | 0x16 => 20,
        0x1c..=0x1e | 0x23 | 0x24 => 4,
        _ => 0,
    };
    Frame {
        magic: 0x80,
        opcode,
        status: 0,
        opaque: 0,
        cas: 0,
        extras: vec![0; extras],
        key: key.as_bytes().to_vec(),
        value: Vec::new(),
    }
}

pub(super) fn a(opcode: u8, status: u16) -> Frame {
    Frame { magic: 0x81, status, extras: Vec::new(), ..q(opcode, "") }
}

impl Frame {
    fn opaque(self, opaque: u32) -> Frame {
        Frame { opaque, ..self }
    }
    fn cas(self, cas: u64) -> Frame {
        Frame { cas, ..self }
    }
    pub(super) fn value(self, value: &[u8]) -> Frame {
        Frame { value: value.to_vec(), ..self }
    }
    fn key(self, key: &str) -> Frame {
        Frame { key: key.as_bytes().to_vec(), ..self }
    }
    fn flags(self) -> Frame {
        Frame { extras: vec![0; 4], ..self }
    }
    fn initial(mut self, initial: u64) -> Frame {
        self.extras[8..16].copy_from_slice(&initial.to_be_bytes());
        self
    }
    fn never_create(mut self) -> Frame {
        self.extras[16..].fill(0xff);
        self
    }
    pub(super) fn bytes(&self) -> Vec<u8> {
        let body = self.extras.len() + self.key.len() + self.value.len();
        let mut bytes = vec![self.magic, self.opcode];
        bytes.extend((self.key.len() as u16).to_be_bytes());
        bytes.extend([self.extras.len() as u8, 0]);
        bytes.extend(self.status.to_be_bytes());
        bytes.extend((body as u32).to_be_bytes());
        bytes.extend(self.opaque.to_be_bytes());
        bytes.extend(self.cas.to_be_bytes());
        bytes.extend(&self.extras);
        bytes.extend(&self.key);
        bytes.extend(&self.value);
        bytes
    }
}

fn join(frames: &[Frame]) -> Vec<u8> {
    frames.iter().flat_map(Frame::bytes).collect()
}

fn c(frames: &[Frame]) -> Turn {
    Turn::Client(join(frames))
}

fn s(frames: &[Frame]) -> Turn {
    Turn::Server(join(frames))
}

#[test]
fn inside_a_value_only_a_header_that_a_client_would_send_is_believed() {
    let frame = |opcode: u8, key: u16, extras: u8, body: u32| {
        let mut bytes = vec![0x80, opcode];
        bytes.extend(key.to_be_bytes());
        bytes.extend([extras, 0, 0, 0]);
        bytes.extend(body.to_be_bytes());
        bytes.extend([0; 12]);
        bytes.extend([b'k'; 40]);
        bytes
    };
    // A get has no value; lengths beyond what the server takes; another frame does not follow; an opcode that is none.
    assert!(!is_strict_request(&frame(0x00, 5, 0, 0x424d_2f75)));
    assert!(!is_strict_request(&frame(0x01, 5, 8, 0xffff_fff0)));
    assert!(!is_strict_request(&frame(0x00, 5, 0, 5)));
    assert!(!is_strict_request(&frame(0x35, 5, 0, 5)));
    assert!(!is_strict_request(&frame(0x0a, 0, 0, 7)));
    assert!(is_strict_request(&frame(0x00, 5, 0, 5)[..29]));
    assert!(is_strict_request(&frame(0x01, 5, 8, 1000)));
    assert!(is_strict_request(&[frame(0x0d, 40, 0, 40), frame(0x0a, 0, 0, 0)[..24].to_vec()].concat()));
}

#[test]
fn retrieval() {
    check(
        &[
            c(&[q(0, "a"), q(0, "b"), q(0x0c, "c"), q(0x0c, "d"), q(0x1d, "e"), q(0x23, "f"), q(0x1c, "g")]),
            s(&[a(0, 0).flags().value(b"hello"), a(0, 1).value(b"Not found")]),
            s(&[a(0x0c, 0).flags().key("c").value(b"x"), a(0x0c, 1).key("d")]),
            s(&[a(0x1d, 0).flags(), a(0x23, 0).flags().key("f"), a(0x1c, 1).value(b"Not found")]),
        ],
        "get a hit 25/33
         get b miss 25/33
         get c hit 25/30
         get d miss 25/25
         gat e hit 29/28
         gat f hit 29/29
         touch g miss 29/33",
    );
}

#[test]
fn changes() {
    check(
        &[
            c(&[
                q(1, "a").value(b"v"),
                q(2, "a"),
                q(3, "a"),
                q(3, "a").cas(7),
                q(1, "a").cas(7),
                q(1, "a").cas(7),
            ]),
            s(&[a(1, 0).cas(9), a(2, 2), a(3, 1), a(3, 1), a(1, 2), a(1, 0)]),
            c(&[q(0x0e, "a").value(b"v"), q(0x0f, "a"), q(1, "big"), q(4, "a"), q(4, "a"), q(4, "a").cas(1)]),
            s(&[a(0x0e, 0), a(0x0f, 5), a(1, 3), a(4, 0), a(4, 1), a(4, 2)]),
        ],
        "set a stored 34/24
         add a not_stored 33/24
         replace a not_stored 33/24
         cas a not_found 33/24
         cas a exists 33/24
         cas a stored 33/24
         append a stored 26/24
         prepend a not_stored 25/24
         set big too_large 35/24
         delete a hit 25/24
         delete a miss 25/24
         delete a exists 25/24",
    );
}

#[test]
fn arithmetic_creates() {
    let number = |value: u64| a(5, 0).value(&value.to_be_bytes());
    check(
        &[
            c(&[q(5, "n").initial(7), q(5, "n").initial(7), q(5, "n").initial(7).never_create(), q(5, "n")]),
            s(&[number(7), number(8), number(7), a(5, 6).value(b"Non-numeric")]),
            c(&[q(6, "m").never_create()]),
            s(&[a(6, 1)]),
        ],
        "incr n stored 45/32
         incr n hit 45/32
         incr n hit 45/32
         incr n error 45/35
         decr m miss 45/24",
    );
}

#[test]
fn keyless() {
    check(
        &[
            c(&[q(0x0a, ""), q(0x0b, ""), q(8, ""), q(0x10, ""), q(0x1b, "")]),
            s(&[a(0x0a, 0), a(0x0b, 0).value(b"1.6.18"), a(8, 0)]),
            s(&[
                a(0x10, 0).key("pid").value(b"1"),
                a(0x10, 0).key("up").value(b"2"),
                a(0x10, 0),
                a(0x1b, 0x81),
            ]),
            c(&[q(0x20, ""), q(0x21, "PLAIN").value(b"\0user\0password"), q(0x10, "nonsense")]),
            s(&[a(0x20, 0).value(b"PLAIN"), a(0x21, 0x20).value(b"Auth failure"), a(0x10, 1)]),
            c(&[q(0x40, "")]),
            s(&[a(0x40, 0x81).value(b"Unknown command")]),
            c(&[q(7, "")]),
            s(&[a(7, 0)]),
        ],
        "noop - ok 24/24
         version - ok 24/30
         flush_all - ok 24/24
         stat - ok 24/79
         verbosity - error 24/24
         sasl - ok 24/29
         sasl - error 43/36
         stat - error 32/24
         unknown - error 24/39
         quit - ok 24/24",
    );
}

#[test]
fn quiet_gets_with_constant_opaque_are_told_apart_by_key() {
    check(
        &[
            c(&[q(0x0d, "a"), q(0x0d, "b"), q(0x0d, "c"), q(0x0d, "d"), q(0x0c, "e")]),
            s(&[a(0x0d, 0).flags().key("b"), a(0x0d, 0).flags().key("d"), a(0x0c, 1).key("e")]),
        ],
        "get a miss 25/0 quiet
         get b hit 25/29 quiet
         get c miss 25/0 quiet
         get d hit 25/29 quiet
         get e miss 25/25",
    );
}

#[test]
fn quiet_gets_are_told_apart_by_opaque() {
    check(
        &[
            c(&[q(9, "a").opaque(1), q(9, "b").opaque(2), q(0x0a, "").opaque(3)]),
            s(&[a(9, 0).flags().opaque(2), a(0x0a, 0).opaque(3)]),
        ],
        "get a miss 25/0 quiet
         get b hit 25/28 quiet
         noop - ok 24/24",
    );
}

#[test]
fn silence_means_success_only_once_a_later_answer_came() {
    check(
        &[
            c(&[
                q(0x11, "a"),
                q(0x12, "b"),
                q(0x14, "c"),
                q(0x15, "d"),
                // It was there, for this one never creates its item.
                q(0x15, "d").never_create(),
                q(0x18, ""),
                q(0x19, "e"),
                q(1, "f"),
            ]),
            s(&[a(0x12, 2), a(0x19, 5), a(1, 0)]),
            c(&[q(0x11, "g"), q(0x0d, "h"), q(0x17, "")]),
        ],
        "set a stored 33/0 quiet
         add b not_stored 33/24 quiet
         delete c hit 25/0 quiet
         incr d unseen 45/0 quiet
         incr d hit 45/0 quiet
         flush_all - ok 24/0 quiet
         append e not_stored 25/24 quiet
         set f stored 33/24
         set g unseen 33/0 quiet
         get h unseen 25/0 quiet
         quit - unseen 24/0 quiet",
    );
}

#[test]
fn frames_in_values_are_values() {
    let forged = join(&[q(0, "forged"), a(0, 0).flags()]);
    check(
        &[
            c(&[q(1, "a").value(&forged)]),
            s(&[a(1, 0)]),
            c(&[q(0, "a")]),
            s(&[a(0, 0).flags().value(&forged)]),
        ],
        "set a stored 91/24
         get a hit 25/86",
    );
}

#[test]
fn a_foreign_answer_loses_the_server() {
    check_with(
        &[c(&[q(0, "a")]), s(&[a(1, 0)]), c(&[q(0, "b")])],
        "get a unseen 25/0
         get b unseen 25/0",
        "unparsed_bytes=24 unmatched_requests=2 unmatched_responses=1 resynchronised=1",
    );
}

#[test]
fn midstream() {
    let mut wire = Wire::midstream();
    wire.client(b"junk").client(&q(0x0c, "a").bytes()).server(&a(0x0c, 0).flags().key("a").bytes()).close();
    assert_eq!(wire.report(), "get a hit 25/29\n");
    let mut wire = Wire::midstream();
    wire.gap(Direction::ToServer, 25);
    wire.server(&a(0x0c, 0).flags().key("a").value(b"xy").bytes()).server(&a(1, 0).bytes()).close();
    assert_eq!(wire.report(), "get a hit 0/31 unasked\n");
    assert_eq!(wire.confessions(), "unmatched_responses=1");
}

#[test]
fn refusal_may_come_before_the_body() {
    let mut wire = Wire::new();
    let set = q(1, "a").value(&[0; 3000]).bytes();
    wire.client(&set[..100]).server(&a(1, 3).bytes()).client(&set[100..]).close();
    assert_eq!(wire.report(), "set a too_large 3033/24\n");
    assert_eq!(wire.confessions(), "");
}
