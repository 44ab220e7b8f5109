#!/usr/bin/env bash
# Counts the instructions of each piece of a batch's path with callgrind, and compares them with instructions.csv.
# Unlike times, the counts are the same on a busy machine: a difference comes from the code or from the compiler.
# usage: bench/instructions.sh [--update] [PIECE ...]
#   --update    count all pieces and write instructions.csv
# Fails if a piece takes over 5 % more instructions than before.
set -euo pipefail
cd "$(dirname "$0")"
update=false
[ "${1:-}" != --update ] || { update=true && shift; }
../scripts/setup.sh
command -v valgrind >/dev/null || {
    echo "instructions: please install valgrind" >&2
    exit 1
}
cargo build --release --locked --bin instructions
program=${CARGO_TARGET_DIR:-target}/release/instructions
pieces=("$@")
[ "${#pieces[@]}" -gt 0 ] || mapfile -t pieces < <("$program")
"$update" && [ "$#" -gt 0 ] && {
    echo "instructions: --update counts all pieces, name none" >&2
    exit 1
}
counted=$(mktemp)
trap 'rm -f "$counted" "$counted".out*' EXIT
echo "piece,instructions_per_batch" >"$counted"
for piece in "${pieces[@]}"; do
    # The warm-up runs outside of `measured`, and is not counted.
    batches=$(valgrind --tool=callgrind --toggle-collect='*instructions*measured*' --collect-atstart=no \
        --callgrind-out-file="$counted.out" "$program" "$piece" 4 2>"$counted.out.log") || {
        cat "$counted.out.log" >&2
        exit 1
    }
    total=$(sed -n 's/^\(summary\|totals\): \([0-9]*\).*/\2/p' "$counted.out" | head -n 1)
    [ "${total:-0}" -gt 0 ] || {
        echo "instructions: nothing was counted for $piece" >&2
        exit 1
    }
    echo "$piece,$((total / batches))" >>"$counted"
    echo "$piece $((total / batches))" >&2
done
if "$update"; then
    cp "$counted" instructions.csv
    exit
fi
awk -F, '
    FNR == 1 { next }
    NR == FNR { before[$1] = $2; next }
    !($1 in before) { printf "%-28s %12d (new)\n", $1, $2; next }
    {
        change = ($2 - before[$1]) / before[$1] * 100
        printf "%-28s %12d -> %12d %+7.2f%%\n", $1, before[$1], $2, change
        worse += change > 5
    }
    END { exit worse > 0 }' instructions.csv "$counted"
