#!/usr/bin/env bash
# Instructions per packet of the hostile traces of benches/cost.rs against those of a clean one, by callgrind (repeatable to a
# fraction of a percent, unlike time), and memory under ten million connections. Needs valgrind. Not part of ./check.
#   tests/cost.sh [PACKETS]     30000 by default
set -euo pipefail
cd "$(dirname "$0")/.."
packets="${1:-30000}"
command -v valgrind >/dev/null || { echo "cost.sh: needs valgrind (apt-get install valgrind)" >&2; exit 1; }
binary=$(cargo bench --bench cost --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"name":"cost".*"executable":"\([^"]*\)".*/\1/p' | tail -1)
[ -x "$binary" ] || { echo "cost.sh: the bench did not build" >&2; exit 1; }

count() { # TRACE PACKETS: instructions of feed and what it calls
    valgrind --tool=callgrind --callgrind-out-file=/dev/null --toggle-collect='cost::feed*' "$binary" "$1" "$2" 2>&1 |
        sed -n 's/.*Collected : \([0-9]*\).*/\1/p'
}

status=0
clean=""
for trace in clean holes one_byte overlaps garbage lookalikes unanswered reversed_values endless_list many_lines \
    waiting_answers syn_flood tuples; do
    # A tenth of the packets is fed first, to warm up; the difference of two runs leaves the start out.
    few=$(count "$trace" $((packets / 2)))
    many=$(count "$trace" "$packets")
    each=$(((many - few) * 100 / (packets / 2 + packets / 20)))
    [ -n "$clean" ] || clean=$each
    limit=400
    case "$trace" in
        tuples | syn_flood) limit=200 ;;
    esac
    ratio=$((each * 100 / clean))
    verdict=""
    [ "$ratio" -le "$limit" ] || { verdict="  more than $((limit / 100)) times"; status=1; }
    printf '%-16s %7d.%02d instructions a packet  %3d.%02d times clean%s\n' \
        "$trace" $((each / 100)) $((each % 100)) $((ratio / 100)) $((ratio % 100)) "$verdict"
done
"$binary" tuples 10000000
exit "$status"
