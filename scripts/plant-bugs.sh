#!/usr/bin/env bash
# Makes a copy of the sources with the bugs of tests/simulation/bugs planted, each behind a switch.
# usage: scripts/plant-bugs.sh DIRECTORY
set -euo pipefail
cd "$(dirname "$0")/.."
bugs=$PWD/tests/simulation/bugs
mkdir -p "$1"
copy=$(cd "$1" && pwd -P)
fresh=$(mktemp -d "$copy.XXXXXX")
trap 'rm -rf "$fresh"' EXIT

# Every crate of the workspace, because cargo refuses the manifest otherwise; also files that git does not track yet.
git ls-files -z --cached --others --exclude-standard --deduplicate -- . ':!bench' ':!docs' ':!fuzz' |
    while IFS= read -r -d '' file; do [ ! -f "$file" ] || printf '%s\0' "$file"; done |
    tar -c --null -T - | tar -x -C "$fresh"

failed=0
names=()
for diff in "$bugs"/*.diff; do
    name=$(basename "$diff" .diff)
    names+=("\"$name\",")
    if ! grep -q "^+.*is_planted(\"$name\")" "$diff"; then
        echo "plant-bugs: $name: the lines that its diff adds do not ask is_planted(\"$name\")" >&2
        failed=1
    # The copy may lie in the repository, whose paths differ. Changes two lines away do not matter.
    elif ! output=$(GIT_CEILING_DIRECTORIES=$(dirname "$fresh") \
        git -C "$fresh" apply --recount -C1 "$diff" 2>&1); then
        printf 'plant-bugs: %s can no longer be planted:\n%s\n' "$name" \
            "$(grep '^error' <<<"$output" || echo "$output")" >&2
        echo "  Edit tests/simulation/bugs/$name.diff: its unchanged lines must be as they now are in that file." >&2
        failed=1
    fi
done
[ "$failed" -eq 0 ] || { echo "plant-bugs: CONTRIBUTING.md, Planted bugs, says more" >&2; exit 1; }
cp "$bugs/planted.rs" "$fresh/protocol/src/"
printf '&[%s]\n' "${names[*]}" >"$fresh/protocol/src/planted.names"
printf '\npub mod planted;\n' >>"$fresh/protocol/src/lib.rs"

# Only what changed is written, so that cargo compiles no more than that.
(cd "$fresh" && find . -type f -print0) | while IFS= read -r -d '' file; do
    cmp -s "$fresh/$file" "$copy/$file" || { mkdir -p "$(dirname "$copy/$file")"; cp "$fresh/$file" "$copy/$file"; }
done
(cd "$copy" && find . -type f -print0) | while IFS= read -r -d '' file; do
    [ -f "$fresh/$file" ] || rm "$copy/$file"
done
