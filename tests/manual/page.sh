#!/bin/sh
# page.sh PAGE INCLUDE LIBRARY WORK COMPILER...: the C program of a page, compiled and run.
set -eu
page=$1 include=$2 library=$3 work=$4
shift 4

program=$work/$(basename "$page" .md)
awk '/^```c$/ {inside = 1; next} /^```/ {inside = 0} inside' "$page" >"$program.c"
[ -s "$program.c" ] || {
    echo "no C block in $page" >&2
    exit 1
}
compiler=$1
shift
# What is linked comes after what needs it.
"$compiler" -I"$include" "$program.c" -o "$program" "$library" -Wl,-rpath,"${library%/*}" "$@" \
    -fopenmp -lm
"$program"
