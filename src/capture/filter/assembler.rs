//! An assembler with labels for classic BPF, the language of `SO_ATTACH_FILTER` (Linux `Documentation/networking/filter.rst`).
//!
//! Promises a program that the kernel accepts: jumps go forwards only, and conditional jumps, which reach 255 instructions
//! at most, are carried further by an inserted unconditional one. Knows nothing of packets.

use libc::sock_filter;

/// Most instructions that the kernel takes (`BPF_MAXINSNS`).
pub const INSTRUCTIONS_MAX: usize = 4096;

/// Furthest a conditional jump reaches: its two offsets are one byte each.
const BRANCH_REACH: usize = 255;

// Operation codes, as linux/bpf_common.h composes them: class, size and mode, or class, operation and source.
/// A = 32 bits of the packet at k.
pub(super) const LOAD_WORD: u16 = 0x20;
/// A = 16 bits of the packet at k.
pub(super) const LOAD_HALF: u16 = 0x28;
/// A = 8 bits of the packet at k.
pub(super) const LOAD_BYTE: u16 = 0x30;
/// Added to one of the loads above: at X + k instead of k.
pub(super) const INDEXED: u16 = 0x20;
/// A = k.
pub(super) const LOAD_CONSTANT: u16 = 0x00;
/// A = M\[k\].
pub(super) const LOAD_SCRATCH: u16 = 0x60;
/// M\[k\] = A.
pub(super) const STORE_SCRATCH: u16 = 0x02;
/// X = k.
pub(super) const LOAD_X_CONSTANT: u16 = 0x01;
/// X = 4 × the low four bits of the packet's byte at k: the length of an IPv4 header in one instruction.
pub(super) const LOAD_X_HEADER_LENGTH: u16 = 0xb1;
/// A += k.
pub(super) const ADD: u16 = 0x04;
/// A += X.
pub(super) const ADD_X: u16 = 0x0c;
/// A |= k.
pub(super) const OR: u16 = 0x44;
/// A &= k.
pub(super) const AND: u16 = 0x54;
/// A <<= k.
pub(super) const SHIFT_LEFT: u16 = 0x64;
/// X = A.
pub(super) const A_TO_X: u16 = 0x07;
/// A = X.
pub(super) const X_TO_A: u16 = 0x87;
/// Jump when A == k.
pub(super) const IF_EQUAL: u16 = 0x15;
/// Jump when A > k.
pub(super) const IF_GREATER: u16 = 0x25;
/// Jump when A >= k.
pub(super) const IF_AT_LEAST: u16 = 0x35;
/// Jump when A & k != 0.
pub(super) const IF_ANY_BIT: u16 = 0x45;
/// End: the first k bytes of the packet are wanted; 0 refuses it.
pub(super) const RETURN: u16 = 0x06;
/// Jump over k instructions.
const JUMP: u16 = 0x05;

/// A place in the program, to be set once with [`Assembler::place`] and jumped to from before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label(usize);

/// The instruction that follows.
pub(super) const NEXT: Label = Label(usize::MAX);

enum Item {
    Plain { code: u16, k: u32 },
    Branch { code: u16, k: u32, on_true: Label, on_false: Label },
    Jump(Label),
    Place(Label),
}

/// Which arms of a branch are too long for one byte and go by way of a jump placed right behind it.
#[derive(Clone, Copy, Default)]
struct Far {
    on_true: bool,
    on_false: bool,
}

impl Far {
    fn jumps(self) -> usize {
        usize::from(self.on_true) + usize::from(self.on_false)
    }
}

/// The program is longer than [`INSTRUCTIONS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a packet filter of {instructions} instructions is longer than the {INSTRUCTIONS_MAX} that the kernel takes"
)]
pub struct ProgramTooLong {
    /// Length that it would have.
    pub instructions: usize,
}

/// Collects instructions and labels in program order.
#[derive(Default)]
pub(super) struct Assembler {
    items: Vec<Item>,
    labels: usize,
}

impl Assembler {
    /// A new label, not placed yet.
    pub(super) fn label(&mut self) -> Label {
        self.labels += 1;
        Label(self.labels - 1)
    }

    /// The label stands for the next instruction.
    pub(super) fn place(&mut self, label: Label) {
        self.items.push(Item::Place(label));
    }

    /// An instruction that does not jump.
    pub(super) fn plain(&mut self, code: u16, k: u32) {
        self.items.push(Item::Plain { code, k });
    }

    /// A conditional jump.
    pub(super) fn branch(&mut self, code: u16, k: u32, on_true: Label, on_false: Label) {
        self.items.push(Item::Branch { code, k, on_true, on_false });
    }

    /// An unconditional jump.
    pub(super) fn jump(&mut self, label: Label) {
        self.items.push(Item::Jump(label));
    }

    /// The program.
    ///
    /// Branches start out short; each round marks those that turn out too long and lays the program out anew, until
    /// none is left. Marks are never taken back, so the rounds end.
    pub(super) fn finish(&self) -> Result<Vec<sock_filter>, ProgramTooLong> {
        let mut far = vec![Far::default(); self.items.len()];
        loop {
            let layout = self.lay_out(&far);
            if !self.mark_far(&layout, &mut far) {
                if layout.instructions > INSTRUCTIONS_MAX {
                    return Err(ProgramTooLong { instructions: layout.instructions });
                }
                return Ok(self.write(&layout, &far));
            }
        }
    }

    fn lay_out(&self, far: &[Far]) -> Layout {
        let mut layout =
            Layout { positions: Vec::new(), places: vec![usize::MAX; self.labels], instructions: 0 };
        for (item, far) in self.items.iter().zip(far) {
            layout.positions.push(layout.instructions);
            match item {
                Item::Place(label) => layout.places[label.0] = layout.instructions,
                Item::Branch { .. } => layout.instructions += 1 + far.jumps(),
                Item::Plain { .. } | Item::Jump(_) => layout.instructions += 1,
            }
        }
        layout
    }

    /// Marks the arms that do not reach; says whether there were any.
    fn mark_far(&self, layout: &Layout, far: &mut [Far]) -> bool {
        let mut any = false;
        for ((item, far), &position) in self.items.iter().zip(far).zip(&layout.positions) {
            let Item::Branch { on_true, on_false, .. } = *item else { continue };
            for (label, mark) in [(on_true, &mut far.on_true), (on_false, &mut far.on_false)] {
                if label != NEXT && !*mark && layout.distance(position, label) > BRANCH_REACH {
                    *mark = true;
                    any = true;
                }
            }
        }
        any
    }

    fn write(&self, layout: &Layout, far: &[Far]) -> Vec<sock_filter> {
        let mut program = Vec::with_capacity(layout.instructions);
        for ((item, far), &position) in self.items.iter().zip(far).zip(&layout.positions) {
            match *item {
                Item::Place(_) => {}
                Item::Plain { code, k } => program.push(sock_filter { code, jt: 0, jf: 0, k }),
                Item::Jump(label) => program.push(jump_over(layout.distance(position, label))),
                Item::Branch { code, k, on_true, on_false } => {
                    let behind = position + 1;
                    let arm = |label: Label, is_far: bool, jump: usize| match (label, is_far) {
                        (NEXT, _) => far.jumps(),
                        (_, true) => jump,
                        (_, false) => layout.distance(position, label),
                    };
                    let jt = arm(on_true, far.on_true, 0);
                    let jf = arm(on_false, far.on_false, usize::from(far.on_true));
                    program.push(sock_filter { code, jt: short(jt), jf: short(jf), k });
                    if far.on_true {
                        program.push(jump_over(layout.distance(behind, on_true)));
                    }
                    if far.on_false {
                        let second = behind + usize::from(far.on_true);
                        program.push(jump_over(layout.distance(second, on_false)));
                    }
                }
            }
        }
        program
    }
}

/// Where everything stands.
struct Layout {
    /// Position of each item's first instruction.
    positions: Vec<usize>,
    /// Position of each label.
    places: Vec<usize>,
    instructions: usize,
}

impl Layout {
    /// Instructions between the one at `position` and the label. A label that is behind it or was never placed is our mistake.
    fn distance(&self, position: usize, label: Label) -> usize {
        let place = self.places[label.0];
        assert!(place != usize::MAX, "label {label:?} was never placed");
        assert!(place > position, "label {label:?} at {place} lies behind the jump at {position}");
        place - position - 1
    }
}

fn short(distance: usize) -> u8 {
    u8::try_from(distance).expect("long arms have been marked")
}

fn jump_over(distance: usize) -> sock_filter {
    // A program of more than 4,096 instructions has been refused before.
    sock_filter { code: JUMP, jt: 0, jf: 0, k: u32::try_from(distance).expect("a program is short") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many instructions a branch over `between` plain ones needs, and whether its arms land where they should.
    fn branch_over(between: usize) -> Vec<sock_filter> {
        let mut asm = Assembler::default();
        let (yes, no) = (asm.label(), asm.label());
        asm.branch(IF_EQUAL, 7, yes, no);
        for _ in 0..between {
            asm.plain(LOAD_CONSTANT, 0);
        }
        asm.place(yes);
        asm.plain(RETURN, 1);
        asm.place(no);
        asm.plain(RETURN, 2);
        asm.finish().unwrap()
    }

    fn land(program: &[sock_filter], taken: bool) -> u32 {
        let arm = if taken { program[0].jt } else { program[0].jf };
        let mut at = 1 + usize::from(arm);
        while program[at].code == JUMP {
            at += 1 + program[at].k as usize;
        }
        assert_eq!(program[at].code, RETURN);
        program[at].k
    }

    #[test]
    fn arms_land_on_either_side_of_the_reach() {
        for between in [0, 253, 254, 255, 256, 257, 3000] {
            let program = branch_over(between);
            assert_eq!((land(&program, true), land(&program, false)), (1, 2), "{between} between");
        }
        // The reach is used to its end: at 254 between, the true arm is 254 and the false arm 255.
        assert_eq!(branch_over(254).len(), 1 + 254 + 2);
        // One further and the false arm is carried, which moves the true arm out of reach too.
        assert_eq!(branch_over(255).len(), 1 + 255 + 2 + 2);
    }

    #[test]
    fn a_long_program_is_refused_with_its_length() {
        let mut asm = Assembler::default();
        for _ in 0..=INSTRUCTIONS_MAX {
            asm.plain(RETURN, 0);
        }
        assert_eq!(asm.finish().err(), Some(ProgramTooLong { instructions: INSTRUCTIONS_MAX + 1 }));
    }
}
