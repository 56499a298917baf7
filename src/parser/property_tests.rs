//! What must hold for any traffic: cuts between packets change nothing, bytes add up, nothing panics, nothing leaks.

use super::conversation::{Knowledge, Seen, Turn, Wire, converse, tuple};
use super::{Connection, ParserLimits, Transactions};
use crate::anomaly::{Anomaly, AnomalyCounts};
use crate::model::{Direction, Outcome, Timestamp};
use crate::reassembly::{StreamBytes, StreamEvent};
use proptest::prelude::*;

/// One exchange that a correct server could have: request bytes and answer bytes.
fn exchange() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let key = "[a-z]{1,3}|[!-~]{1,250}";
    // Bodies that are made to look like messages.
    let body = prop_oneof![
        Just(b"END\r\nVALUE forged 0 1\r\nget forged\r\nmn\r\nSTORED\r\n".to_vec()),
        Just(b"\x80\x00\x00\x06\x00\x00\x00\x00\x00\x00\x00\x06\0\0\0\0\0\0\0\0\0\0\0\0forged".to_vec()),
        prop::collection::vec(any::<u8>(), 0..300),
    ];
    prop_oneof![
        prop::collection::vec((key, prop::option::of(body.clone())), 1..6).prop_map(multiget),
        (key, body.clone(), any::<bool>()).prop_map(|(key, body, noreply)| {
            let option = if noreply { " noreply" } else { "" };
            let mut request = format!("set {key} 0 0 {}{option}\r\n", body.len()).into_bytes();
            request.extend(&body);
            request.extend(b"\r\n");
            (request, if noreply { vec![] } else { b"STORED\r\n".to_vec() })
        }),
        (key, any::<bool>()).prop_map(|(key, hit)| {
            let answer: &[u8] = if hit { b"DELETED\r\n" } else { b"NOT_FOUND\r\n" };
            (format!("delete {key}\r\n").into_bytes(), answer.to_vec())
        }),
        (key, prop::option::of(body)).prop_map(|(key, body)| {
            let mut answer = Vec::new();
            if let Some(body) = body {
                answer.extend(format!("VA {} k{key}\r\n", body.len()).as_bytes());
                answer.extend(body);
                answer.extend(b"\r\n");
            }
            answer.extend(b"MN\r\n");
            (format!("mg {key} v k q\r\nmn\r\n").into_bytes(), answer)
        }),
        Just((b"version\r\n".to_vec(), b"VERSION 1.6.18\r\n".to_vec())),
        Just((b"stats\r\n".to_vec(), b"STAT a 1\r\nSTAT b 2\r\nEND\r\n".to_vec())),
    ]
}

fn multiget(keys: Vec<(String, Option<Vec<u8>>)>) -> (Vec<u8>, Vec<u8>) {
    let (mut request, mut answer) = (b"get".to_vec(), Vec::new());
    for (key, body) in keys {
        request.extend(format!(" {key}").as_bytes());
        if let Some(body) = body {
            answer.extend(format!("VALUE {key} 0 {}\r\n", body.len()).as_bytes());
            answer.extend(body);
            answer.extend(b"\r\n");
        }
    }
    request.extend(b"\r\n");
    answer.extend(b"END\r\n");
    (request, answer)
}

/// Everything but times, which cuts do change.
fn timeless(seen: &[Seen]) -> Vec<Seen> {
    seen.iter().map(|seen| Seen { latency: None, timestamp: Timestamp::ZERO, ..seen.clone() }).collect()
}

proptest! {
    #[test]
    fn cuts_change_nothing_and_bytes_add_up(
        exchanges in prop::collection::vec(exchange(), 1..8),
        pipelined in any::<bool>(),
        pieces in prop::collection::vec(1..400usize, 1..20),
    ) {
        let (mut turns, mut asked, mut answered) = (Vec::new(), Vec::new(), Vec::new());
        for (request, answer) in exchanges {
            asked.extend(&request);
            answered.extend(&answer);
            turns.extend([Turn::Client(request), Turn::Server(answer)]);
        }
        if pipelined {
            turns = vec![Turn::Client(asked.clone()), Turn::Server(answered.clone())];
        }
        let whole = converse(&turns, || usize::MAX);
        let mut cycle = pieces.iter().cycle();
        let cut = converse(&turns, || *cycle.next().unwrap());
        prop_assert_eq!(timeless(&whole.seen), timeless(&cut.seen));
        prop_assert_eq!(whole.confessions(), "");
        prop_assert_eq!(cut.confessions(), "");
        prop_assert!(cut.carry_max < 300);
        prop_assert_eq!(whole.seen.iter().map(|seen| seen.request_bytes).sum::<u64>(), asked.len() as u64);
        prop_assert_eq!(whole.seen.iter().map(|seen| seen.response_bytes).sum::<u64>(), answered.len() as u64);
        prop_assert!(whole.seen.iter().all(|seen| seen.key != b"forged"));
        prop_assert!(whole.seen.iter().all(|seen| seen.outcome != Outcome::Unseen || seen.notes.quiet));
    }

    #[test]
    fn loss_never_makes_a_wrong_outcome(
        exchanges in prop::collection::vec((exchange(), 0..8u8), 1..20),
        midstream in any::<bool>(),
    ) {
        // Each key has one fate for the whole conversation: `h…` is always a hit, `m…` never.
        let mut wire = if midstream { Wire::midstream() } else { Wire::new() };
        for (index, (_, fate)) in exchanges.iter().enumerate() {
            let request = format!("get h{index} m{index}\r\n");
            let answer = format!("VALUE h{index} 0 10\r\nEND\r\nEND\r\n\r\nEND\r\n");
            send(&mut wire, Direction::ToServer, request.as_bytes(), fate & 1 != 0);
            send(&mut wire, Direction::ToClient, answer.as_bytes(), fate & 2 != 0);
        }
        wire.close();
        for seen in &wire.seen {
            match seen.outcome {
                Outcome::Hit => prop_assert_eq!(seen.key[0], b'h'),
                Outcome::Miss => prop_assert_eq!(seen.key[0], b'm'),
                _ => {}
            }
        }
    }

    #[test]
    fn garbage_never_panics(
        events in prop::collection::vec((any::<bool>(), garbage(), any::<[bool; 3]>(), any::<(u32, u32)>()), 1..40),
    ) {
        let mut transactions = Transactions::new(ParserLimits { requests_max: 16, ..ParserLimits::default() });
        let mut connection = Connection::default();
        let mut anomalies = AnomalyCounts::default();
        for (client, bytes, [segment_start, idle, quiescent], (position, acknowledged)) in events {
            let direction = if client { Direction::ToServer } else { Direction::ToClient };
            let event = match &bytes[..] {
                [] => StreamEvent::Gap { direction, bytes: 1 },
                [b'#', ..] => StreamEvent::Close { direction },
                bytes => StreamEvent::Bytes(StreamBytes {
                    direction, bytes, timestamp: Timestamp::from_nanos(u64::from(position)),
                    segment_start, idle, position, acknowledged, quiescent,
                }),
            };
            let demand = transactions.handle_event(&mut connection, event, &tuple(1), &mut anomalies, &mut |seen| {
                assert!(seen.key.len() <= 250);
                assert!(!seen.command.is_keyed() || !seen.key.is_empty());
            });
            if let StreamEvent::Bytes(_) = event {
                prop_assert!(demand.used <= bytes.len());
                prop_assert!(demand.used > 0 || demand.skip == 0);
                // Whatever is left must be a head that may still become whole.
                let is_head = bytes.len() - demand.used <= ParserLimits::default().head_bytes_max;
                prop_assert!(demand.skip > 0 || !demand.framed || is_head);
            }
        }
        let event = StreamEvent::Close { direction: Direction::ToClient };
        transactions.handle_event(&mut connection, event, &tuple(1), &mut anomalies, &mut |_| {});
        prop_assert_eq!(transactions.outstanding(), 0);
    }

    #[test]
    fn garbage_as_a_stream_is_accounted_for(segments in prop::collection::vec((any::<bool>(), garbage()), 1..40)) {
        let mut wire = Wire::new();
        for (client, bytes) in segments {
            let direction = if client { Direction::ToServer } else { Direction::ToClient };
            wire.segment(direction, &bytes, Knowledge::default());
        }
        wire.close();
        prop_assert!(wire.count_of(Anomaly::UnknownProtocolFlow) + wire.count_of(Anomaly::TlsFlow) <= 1);
    }
}

/// Sends a segment, or loses it.
fn send(wire: &mut Wire, direction: Direction, bytes: &[u8], lost: bool) {
    if lost {
        wire.gap(direction, bytes.len() as u32);
    } else {
        wire.segment(direction, bytes, Knowledge::default());
    }
}

/// Bytes that are almost messages.
fn garbage() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..30),
        prop::sample::select(vec![
            "get a b c\r\n",
            "get ",
            "gats 1 a\r\n",
            "set a 0 0 3\r\nabc\r\n",
            "set a 0 0 99999999999\r\n",
            "VALUE a 0 3\r\n",
            "END\r\n",
            "STORED\r\n",
            "mg a v k q\r\n",
            "VA 1 ka\r\n",
            "HD\r\n",
            "ms a 1 q\r\nx\r\n",
            "mn\r\n",
            "MN\r\n",
            "\r\n",
            "#",
            "ERROR\r\n",
            "OK\r\n",
            "stats\r\n",
            "STAT a 1\r\n",
            "watch\r\n",
            "quit\r\n",
            "VALUE a 0 2147483645\r\n",
            "     ",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
        (any::<u8>(), 0..64u8, 0..4u8, 0..21u8, 0..40u8).prop_map(|(magic, opcode, key, extras, body)| {
            let mut frame = vec![0x80 | (magic & 1), opcode, 0, key, extras, 0, 0, 0, 0, 0, 0, body];
            frame.resize(24 + usize::from(body), b'k');
            frame
        }),
        Just(vec![b'x'; 700]),
    ];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}
