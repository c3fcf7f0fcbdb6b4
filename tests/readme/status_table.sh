#!/bin/sh
# status_table.sh README PROGRAM: the README's rows are those that the program prints.
set -eu
written=$(grep '^| `HPA_' "$1")
wanted=$("$2")
[ "$written" = "$wanted" ] || {
    printf 'The README says:\n%s\n\nThe header says:\n%s\n' "$written" "$wanted" >&2
    exit 1
}
