#!/usr/bin/env bash
# Gate one architecture file of the repository in the working directory: as it is there, against commit BASE.
#
#   FILE           its path in the repository
#   BASE           commit to compare with
#   ARCHITECTURES  specs of it to measure (default: its name)
#   PLAN           plan whose suites are asked (default: gate)
#   PYTHON         with kvmark's dependencies (default: python3)
#   OUT            folder for gate.json, gate.md, gate.xml and the numbers (default: .)
#
# Two versions of kvmark that differ in nothing but the file: a repository of its own with the base's version
# committed and the present one in the working tree. So `kvmark gate --base HEAD` compares exactly that.
set -euo pipefail

PYTHON="${PYTHON:-python3}"
OUT="$(cd "${OUT:-.}" && pwd)"
kvmark="$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)"
name="$(basename "$FILE" .py)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

if [ ! -f "$FILE" ]; then
    echo "$FILE is not in this checkout." >&2
    exit 2
fi
if [ -e "$kvmark/models/architectures/$name.py" ]; then
    echo "kvmark has an architecture '$name' of its own; rename $FILE." >&2
    exit 2
fi
if ! git rev-parse --verify --quiet "$BASE^{commit}" > /dev/null; then
    echo "'$BASE' is not in this checkout; check out with fetch-depth: 0." >&2
    exit 2
fi

cp -R "$kvmark/harness" "$kvmark/models" "$kvmark/suites" "$work"
mine="$work/models/architectures/$name.py"
if git cat-file -e "$BASE:./$FILE" 2> /dev/null; then
    git show "$BASE:./$FILE" > "$mine"
else # new in this pull request, unless it was elsewhere before: then "new" would hide what became of it
    top="$(git rev-parse --show-toplevel)"
    { git ls-tree -r --name-only --full-tree "$BASE" | grep -E "(^|/)$name\.py$" || true; } | while read -r was; do
        if [ ! -e "$top/$was" ]; then
            echo "$FILE was $was in $BASE; move it in a pull request of its own." >&2
            exit 2
        fi
    done
fi
own=(git -C "$work" -c user.name=kvmark -c user.email=kvmark@localhost -c commit.gpgsign=false)
"${own[@]}" init --quiet
"${own[@]}" add --force harness models suites
"${own[@]}" commit --quiet --message "kvmark with the base's $name"
cp "$FILE" "$mine"

# The Transformer has not changed: it shows what this machine's noise looks like, and a new file needs a partner.
arguments=(--arch transformer)
for spec in ${ARCHITECTURES:-$name}; do
    arguments+=(--arch "$spec")
done
PYTHONPATH="$work" "$PYTHON" -P -m harness.cli gate --base HEAD --plan "${PLAN:-gate}" "${arguments[@]}" \
    --out "$OUT/kvmark-gate" --json "$OUT/gate.json" --markdown "$OUT/gate.md" --junit "$OUT/gate.xml"
