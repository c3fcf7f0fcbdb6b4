#!/bin/sh
# links.sh README: every file that the README links to or shows is there.
set -eu
cd "$(dirname "$1")"
targets=$(grep -Eo '\]\([^)]*\)|(src|href)="[^"]*"' "$1" | sed -E 's/^\]\(//; s/\)$//; s/^(src|href)="//; s/"$//' |
    grep -Ev '^(https?:|#)')
[ -n "$targets" ]
status=0
for target in $targets; do
    [ -e "${target%%#*}" ] || {
        echo "the README points at $target, which is not there" >&2
        status=1
    }
done
exit $status
