#!/bin/sh
# program.sh README INCLUDE LIBRARY WORK COMPILER...: the README's C blocks, compiled and run.
set -eu
readme=$1 include=$2 library=$3 work=$4
shift 4

awk '/^```c$/ {inside = 1; next} /^```/ {inside = 0} inside' "$readme" >"$work/program.c"
[ -s "$work/program.c" ] || {
    echo "no C block in $readme" >&2
    exit 1
}
"$@" -I"$include" "$work/program.c" -o "$work/program" "$library" -Wl,-rpath,"${library%/*}" \
    -fopenmp -lm
printed=$("$work/program")
echo "$printed"
echo "$printed" | grep -Eq '^dk\[0\] = -?[0-9.]+(e-?[0-9]+)?$'
