#!/usr/bin/env python3
"""Does a test fail when a rule is taken out of the parser or of reassembly?

Each entry of the table below makes one rule conditional in a copy of the source. The copy is built once, and the tests of both
stages are run once for each rule without it (MEMTAP_MUTANT names the rule). Prints which tests failed; fails itself when a
mutant lives, or when an entry no longer fits the source.

    tests/mutants.py            all of them, in a worktree of the last commit (one build of its own, then seconds for each)
    tests/mutants.py WORD...    only those whose name contains one of these words
    tests/mutants.py --check    only sees that every entry fits the source once (part of tests/traps.rs)
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent

# A rule that is missing may keep a test waiting for ever.
TEST_SECONDS_MAX = 300

# Name, file, what stands there, and what stands there instead: GONE is whether the rule is taken out.
MUTANTS = [
    (
        "a NUL ends a line for old servers",
        "src/parser/requests.rs",
        "let line = if self.connection.is_new_server {",
        "let line = if self.connection.is_new_server || GONE {",
    ),
    ("versions are compared", "src/parser/text.rs", "    version >= FIRST_NEW", "    version >= FIRST_NEW && !GONE"),
    (
        "a version holds for later connections",
        "src/parser/transaction.rs",
        "self.connection.is_new_server = self.servers.is_new(&self.tuple.server);",
        "self.connection.is_new_server = !GONE && self.servers.is_new(&self.tuple.server);",
    ),
    (
        "a version in a value is not believed",
        "src/parser/transaction.rs",
        "if !self.connection.provisional && !self.connection.unproven {",
        "if GONE || (!self.connection.provisional && !self.connection.unproven) {",
    ),
    (
        "new servers read no command behind a space",
        "src/parser/requests.rs",
        "Some(_) if self.connection.is_new_server && line.first()",
        "Some(_) if !GONE && self.connection.is_new_server && line.first()",
    ),
    (
        "the body of a refused store is answered by old servers",
        "src/parser/answers.rs",
        "if strays > 0 && plain && !self.is_front_invalid() {",
        "if !GONE && strays > 0 && plain && !self.is_front_invalid() {",
    ),
    (
        "a silent creation is no hit",
        "src/parser/binary.rs",
        "if request.traits.has(Traits::CREATES_SILENTLY) {",
        "if !GONE && request.traits.has(Traits::CREATES_SILENTLY) {",
    ),
    (
        "nothing is read behind quit",
        "src/parser/requests.rs",
        "if head.command == Command::Quit && !self",
        "if !GONE && head.command == Command::Quit && !self",
    ),
    (
        "a gap ends a quit",
        "src/parser/transaction.rs",
        "self.connection.has_quit &= bytes == 0;",
        "self.connection.has_quit &= GONE || bytes == 0;",
    ),
    (
        "headers of PROXY version 2",
        "src/parser/proxy.rs",
        "Some(b'\\r') => read_v2(bytes),",
        "Some(b'\\r') if !GONE => read_v2(bytes),",
    ),
    (
        "a store is complete with its body",
        "src/parser/transaction.rs",
        "if request.traits.has(Traits::UNTIMED) && request.end == position {",
        "if !GONE && request.traits.has(Traits::UNTIMED) && request.end == position {",
    ),
    (
        "a binary anchor has legal lengths",
        "src/parser/binary.rs",
        "body_fits && header.status == 0",
        "(GONE || body_fits) && header.status == 0",
    ),
    (
        "unproven requests are not reported",
        "src/parser/transaction.rs",
        "if outcome == Outcome::Unseen && self.connection.unproven && !self.connection.one_sided {",
        "if !GONE && outcome == Outcome::Unseen && self.connection.unproven && !self.connection.one_sided {",
    ),
    (
        "only a server that was heard confirms",
        "src/parser/requests.rs",
        "if self.connection.unproven && !self.connection.server_seen {",
        "if !GONE && self.connection.unproven && !self.connection.server_seen {",
    ),
    (
        "meta codes are whole tokens",
        "src/parser/text.rs",
        "if matches!(line.get(2), None | Some(b' '))",
        "if (GONE || matches!(line.get(2), None | Some(b' ')))",
    ),
    (
        "a silent store may be too large",
        "src/parser/requests.rs",
        "let outcome = if too_large {",
        "let outcome = if !GONE && too_large {",
    ),
    (
        "an answer acknowledges its request",
        "src/parser/transaction.rs",
        "        acknowledged.wrapping_sub(request.end",
        "        GONE || acknowledged.wrapping_sub(request.end",
    ),
    (
        "keys of a multiget may be answered out of order",
        "src/parser/answers.rs",
        "for _ in 0..OUT_OF_ORDER_KEYS_MAX {",
        "for _ in 0..(if GONE { 0 } else { OUT_OF_ORDER_KEYS_MAX }) {",
    ),
    (
        "a server that has closed answers nothing",
        "src/parser/transaction.rs",
        "self.connection.server_lost = true;\n                self.connection.one_sided = true;",
        "self.connection.server_lost |= !GONE;\n                self.connection.one_sided |= !GONE;",
    ),
    (
        "a named key must be the one that was asked for",
        "src/parser/binary.rs",
        "|| response.key.is_some_and(|named| named != key)",
        "|| (!GONE && response.key.is_some_and(|named| named != key))",
    ),
    (
        "watch is no conversation",
        "src/parser/answers.rs",
        "self.connection.protocol = Protocol::Watch;",
        "if !GONE { self.connection.protocol = Protocol::Watch; }",
    ),
    ("HTTP is foreign", "src/parser/requests.rs", 'last.starts_with(b"HTTP/") ||', '(!GONE && last.starts_with(b"HTTP/")) ||'),
    (
        "holes in bodies are free",
        "src/reassembly/stream.rs",
        "let free = hole.min(stream.skip);",
        "let free = if GONE { 0 } else { hole.min(stream.skip) };",
    ),
    (
        "a SYN on a live connection waits to be confirmed",
        "src/reassembly/control.rs",
        "(Direction::ToServer, false) => Opening::Candidate(next),",
        "(Direction::ToServer, false) => if GONE { Opening::New } else { Opening::Candidate(next) },",
    ),
    (
        "an answer waits for its request",
        "src/reassembly/assembler.rs",
        "Some(ack) if peer.is_framed() && ack.is_after(peer.reach()) => {",
        "Some(ack) if !GONE && peer.is_framed() && ack.is_after(peer.reach()) => {",
    ),
    (
        "a datagram counts once",
        "src/reassembly/datagram.rs",
        "if self.is_copy(datagram) {",
        "if !GONE && self.is_copy(datagram) {",
    ),
]

SWITCH = """
/// Whether the rule of this name is taken out.
pub(crate) fn is_gone(rule: &str) -> bool {
    static GONE: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    GONE.get_or_init(|| std::env::var("MEMTAP_MUTANT").unwrap_or_default()) == rule
}
"""


def misfits():
    """Entries that do not fit the source exactly once."""
    found = [(name, (ROOT / file).read_text().count(old)) for name, file, old, _ in MUTANTS]
    return [f"{name}: its pattern stands {count} times in the source" for name, count in found if count != 1]


def make_conditional(copy):
    for name, file, old, new in MUTANTS:
        path = copy / file
        path.write_text(path.read_text().replace(old, new.replace("GONE", f'crate::is_gone("{name}")')))
    with (copy / "src/lib.rs").open("a") as library:
        library.write(SWITCH)


def build(copy):
    """The path of the program with the library's tests."""
    command = ["cargo", "test", "--locked", "--target-dir", ROOT / "target/mutants", "--lib", "--no-run"]
    run = subprocess.run(
        [*command, "--message-format", "json-render-diagnostics"], cwd=copy, check=True, stdout=subprocess.PIPE
    )
    messages = [json.loads(line) for line in run.stdout.splitlines()]
    return [message["executable"] for message in messages if message.get("executable")][-1]


def failures(program, mutant):
    """Names of the tests that fail without a rule."""
    # Few inputs by chance: a rule is held by a test that was written for it. What fails without a rule is not to be kept: proptest looks
    # for the sources upwards of where it runs, and finds the project's own.
    proptest = {"PROPTEST_CASES": "64", "PROPTEST_DISABLE_FAILURE_PERSISTENCE": "true"}
    environment = os.environ | {"MEMTAP_MUTANT": mutant} | proptest
    command = [program, "parser::", "reassembly::"]
    folder = pathlib.Path(program).parent
    try:
        run = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TEST_SECONDS_MAX
        )
    except subprocess.TimeoutExpired:
        return ["time ran out"]
    lines = run.stdout.splitlines()
    failed = [line.split()[1] for line in lines if line.startswith("test ") and line.endswith("FAILED")]
    return failed or ([] if run.returncode == 0 else [run.stderr.strip()])


def main():
    complaints = misfits()
    if complaints or sys.argv[1:] == ["--check"]:
        sys.exit("\n".join(complaints) or 0)
    words = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="memtap-mutants-") as folder:
        copy = pathlib.Path(folder) / "copy"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", copy, "HEAD"], cwd=ROOT, check=True)
        try:
            make_conditional(copy)
            program = build(copy)
            if failed := failures(program, ""):
                sys.exit("with every rule in place these fail: " + ", ".join(failed))
            alive = 0
            for name, *_ in MUTANTS:
                if words and not any(word in name for word in words):
                    continue
                failed = failures(program, name)
                alive += not failed
                more = f" and {len(failed) - 2} more" if len(failed) > 2 else ""
                print(f"{name}: " + (", ".join(failed[:2]) + more if failed else "LIVES"), flush=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", copy], cwd=ROOT, check=True)
    sys.exit(f"{alive} mutants live" if alive else 0)


if __name__ == "__main__":
    main()
