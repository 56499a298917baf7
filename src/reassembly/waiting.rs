//! Segments that came too early: held in sequence order, delivered when their time comes, and given up on when it does not.
//!
//! A list never has the same byte twice: of two copies the first is kept. Its head stands in the pool's queue for the
//! patience that it deserves; [`settle`](Assembler::settle) is what its end means.

use super::assembler::{Assembler, ClientLoss, Obstacle, deliver};
use super::pool::{Arrival, HeldPool, NIL, Patience};
use super::sequence::SeqNumber;
use super::{Demand, StreamEvent};
use crate::anomaly::Anomaly;
use crate::model::{Direction, FlowTuple};

impl<S, E: FnMut(&FlowTuple, &mut S, StreamEvent<'_>) -> Demand> Assembler<'_, S, E> {
    /// Takes those parts of a segment that are not held already: the first copy wins.
    #[cold]
    pub(super) fn place_between(&mut self, mut arrival: Arrival, mut payload: &[u8]) {
        let mut repeats = false;
        let mut from = self.flow.stream(arrival.direction).held;
        while let Some(id) = self.overlap(from, &arrival) {
            let known = *self.held.arrival(id);
            let head = self.flow.stream(arrival.direction).held;
            repeats = true;
            let before = known.seq.distance_from(arrival.seq).max(0).unsigned_abs();
            if before > 0 {
                let captured_bytes = arrival.captured_bytes.min(before);
                let part = Arrival { wire_bytes: before, captured_bytes, fin: false, ..arrival };
                self.place(part, &payload[..captured_bytes as usize]);
                self.pump();
            }
            let known_end = known.end().offset_from(arrival.seq);
            if known_end >= arrival.wire_bytes {
                // All of its bytes are known; a FIN in the midst of known bytes cannot be.
                arrival.fin &= known_end == arrival.wire_bytes && !known.fin;
                payload = &[];
                arrival.cut_front(arrival.wire_bytes);
                break;
            }
            payload = &payload[arrival.cut_front(known_end)..];
            // Segments leave the list in order: unless the first has left, the known one is still there to go on from.
            let new_head = self.flow.stream(arrival.direction).held;
            from = if new_head == head { id } else { new_head };
        }
        if repeats {
            self.listener.tally.anomalies.count(Anomaly::DuplicateSegment);
        }
        if arrival.wire_bytes > 0 || arrival.fin {
            self.place(arrival, payload);
        }
    }

    /// The first segment in the list from `from` on that has bytes of this one, or the same FIN.
    fn overlap(&self, from: u32, arrival: &Arrival) -> Option<u32> {
        let same_fin = |known: &Arrival| known.fin && arrival.wire_bytes == 0 && known.end() == arrival.seq;
        let id = self.held.list(from).find(|&id| {
            let known = self.held.arrival(id);
            known.end().is_after(arrival.seq) || same_fin(known)
        })?;
        let known = self.held.arrival(id);
        (known.seq.is_before(arrival.end()) || same_fin(known)).then_some(id)
    }

    /// Keeps a segment, which overlaps none that is held, for later; `false` when there is no room.
    pub(super) fn hold(&mut self, arrival: Arrival, payload: &[u8], obstacle: Obstacle) -> bool {
        let head = self.flow.stream(arrival.direction).held;
        let before = self.predecessor(head, arrival.seq);
        let stream = &mut self.flow.streams[arrival.direction.index()];
        let waits_for_peer = match obstacle {
            Obstacle::Peer(_) => true,
            Obstacle::Hole => false,
            Obstacle::Behind => self.held.patience(head) == Patience::Reordering,
        };
        let segments_max = if waits_for_peer {
            u8::MAX
        } else if stream.acked_seen {
            self.limits.held_segments_stream_max
        } else {
            self.limits.held_segments_unacknowledged_max
        };
        let blocks = blocks_of(&arrival);
        if stream.held_segments >= segments_max
            || stream.held_blocks.saturating_add(blocks) > self.limits.held_blocks_stream_max
        {
            return false;
        }
        let patience =
            if stream.acked_seen { Patience::Retransmission } else { Patience::RetransmissionUnacknowledged };
        let Some(id) = self.held.hold(arrival, payload, patience) else { return false };
        stream.held = self.held.link(head, before, id);
        stream.held_segments += 1;
        stream.held_blocks += blocks;
        self.listener.tally.anomalies.count(Anomaly::OutOfOrderSegment);
        true
    }

    /// The last held segment that does not begin after `seq`.
    fn predecessor(&self, head: u32, seq: SeqNumber) -> u32 {
        let goes_before = |id: u32| !self.held.arrival(id).seq.is_after(seq);
        let last = self.held.last(head);
        if last == NIL || goes_before(last) {
            return last;
        }
        self.held.list(head).take_while(|&id| goes_before(id)).last().unwrap_or(NIL)
    }

    /// Delivers held segments of both directions as long as there is one that nothing stands in the way of.
    pub(super) fn pump(&mut self) {
        loop {
            let to_server = self.head_obstacle(Direction::ToServer);
            if to_server == Some(None) {
                self.deliver_head(Direction::ToServer);
                continue;
            }
            match (to_server, self.head_obstacle(Direction::ToClient)) {
                (_, Some(None)) => self.deliver_head(Direction::ToClient),
                // Each waits for the other, and neither for bytes that are missing.
                (Some(Some(Obstacle::Peer(_))), Some(Some(Obstacle::Peer(_)))) => {
                    self.deliver_head(Direction::ToServer);
                }
                _ => break,
            }
        }
        for direction in [Direction::ToServer, Direction::ToClient] {
            self.limit_patience(direction);
        }
    }

    /// What stands in the way of the first held segment of a direction, if one is held.
    fn head_obstacle(&self, direction: Direction) -> Option<Option<Obstacle>> {
        let head = self.flow.stream(direction).held;
        (head != NIL).then(|| self.obstacle(self.held.arrival(head)))
    }

    /// Delivers the first held segment of a direction.
    pub(super) fn deliver_head(&mut self, direction: Direction) {
        let own = direction.index();
        let id = self.flow.streams[own].held;
        let arrival = self.unlink_head(direction);
        let mut passage = self.passage(&arrival);
        deliver(self.flow, &mut self.listener, &mut passage, &arrival, self.held.payload(id));
        self.held.release(id);
        self.note_passage(&passage);
        if passage.anchored
            && let Some(ack) = arrival.ack
        {
            self.anchor(ack);
        }
    }

    /// Takes the first held segment of a direction off its list; the caller releases it.
    pub(super) fn unlink_head(&mut self, direction: Direction) -> Arrival {
        let stream = &mut self.flow.streams[direction.index()];
        let id = stream.held;
        let arrival = *self.held.arrival(id);
        stream.held = self.held.unlink(id, NIL, id);
        stream.held_segments -= 1;
        stream.held_blocks -= blocks_of(&arrival);
        arrival
    }

    /// When it is known that the peer has what the first held segment waits for, no retransmission will come.
    fn limit_patience(&mut self, direction: Direction) {
        let stream = *self.flow.stream(direction);
        let known = match self.head_obstacle(direction) {
            Some(Some(Obstacle::Peer(_))) => true,
            Some(Some(Obstacle::Hole)) => stream.acked_seen && stream.acked.is_after(stream.reach()),
            _ => return,
        };
        if known && self.held.patience(stream.held) != Patience::Reordering {
            self.held.requeue(stream.held, Patience::Reordering, self.now);
        }
    }

    /// Stops waiting for what the first held segment of a direction waits for.
    pub(super) fn settle(&mut self, direction: Direction) {
        let head = self.flow.stream(direction).held;
        if head == NIL {
            return;
        }
        let arrival = *self.held.arrival(head);
        if !self.overcome(&arrival) {
            self.deliver_head(direction);
        }
        self.pump();
    }

    /// Ends a segment's wait: declares the missing bytes a gap, or, once, the client's overdue when nothing behind them was
    /// seen. `false` when nothing is missing.
    fn overcome(&mut self, arrival: &Arrival) -> bool {
        match self.obstacle(arrival) {
            Some(Obstacle::Hole) => {
                self.gap(arrival.direction, arrival.seq);
                true
            }
            Some(Obstacle::Peer(ack)) => {
                let direction = arrival.direction.opposite();
                let peer = self.flow.stream(direction);
                let upto = match peer.held {
                    NIL if direction == Direction::ToServer && self.flow.client_loss == ClientLoss::None => {
                        self.flow.client_loss = ClientLoss::Overdue;
                        self.flow.client_lost_at = ack;
                        return true;
                    }
                    NIL => ack,
                    head => self.held.arrival(head).seq.min(ack),
                };
                let declared = upto.is_after(peer.reach());
                if declared {
                    self.gap(direction, upto);
                }
                declared
            }
            Some(Obstacle::Behind) | None => false,
        }
    }

    /// Delivers a segment that cannot be held: what it waits for is declared a gap.
    #[cold]
    pub(super) fn force(&mut self, arrival: &Arrival, payload: &[u8]) {
        // Each round takes one obstacle away: a hole, a held segment, the peer.
        for _ in 0..=2 * usize::from(u8::MAX) {
            match self.obstacle(arrival) {
                None => break,
                Some(Obstacle::Behind) => self.settle(arrival.direction),
                Some(Obstacle::Hole | Obstacle::Peer(_)) => {
                    if !self.overcome(arrival) {
                        break;
                    }
                    self.pump();
                }
            }
        }
        self.deliver(arrival, std::iter::once(payload));
    }

    #[inline(always)]
    pub(super) fn holds_any(&self) -> bool {
        self.flow.streams[0].held != NIL || self.flow.streams[1].held != NIL
    }

    /// Just after the last byte of a direction that is held or taken.
    pub(super) fn held_end(&self, direction: Direction) -> SeqNumber {
        let stream = self.flow.stream(direction);
        match self.held.last(stream.held) {
            NIL => stream.next,
            last => self.held.arrival(last).end(),
        }
    }
}

/// Blocks that a held segment takes.
fn blocks_of(arrival: &Arrival) -> u16 {
    let blocks = HeldPool::blocks_for(arrival.captured_bytes as usize);
    u16::try_from(blocks).unwrap_or(u16::MAX)
}
