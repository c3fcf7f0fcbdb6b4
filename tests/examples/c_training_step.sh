#!/bin/sh
# c_training_step.sh SOURCE PREFIX WORK COMPILER: applies the diff in the README of the example, builds
# both programs, and compares: equal gradients with every key kept, training that works with fewer.
set -eu
source=$1 prefix=$2 work=$3 compiler=$4
here=$(cd "$(dirname "$0")" && pwd)

fail() {
    echo "$1" >&2
    exit 1
}

rm -rf "$work"
mkdir -p "$work"
cp "$source"/*.c "$source"/*.h "$work"
awk '/^```diff$/ {inside = 1; next} /^```/ {inside = 0} inside' "$source/README.md" >"$work/hpa.diff"
cd "$work"
patch -o pruned.c train.c hpa.diff
pc=$(find "$prefix" -name hpa.pc)
export PKG_CONFIG_PATH="${pc%/*}"
flags='-std=c11 -O3 -fopenmp -Wall -Wextra -Wconversion -Wshadow -Werror'
# The flags are several words each.
# shellcheck disable=SC2046,SC2086
{
    "$compiler" $flags train.c -o dense -lm
    "$compiler" $flags pruned.c -o pruned $(pkg-config --cflags --libs hpa) -lm
    "$compiler" $flags "$here/relative_error.c" -o relative_error -lm
}
LD_LIBRARY_PATH=$(pkg-config --variable=libdir hpa)
export LD_LIBRARY_PATH

./dense train.c 1 512 dense.gradients
./pruned train.c 1 512 all_kept.gradients
./relative_error all_kept.gradients dense.gradients 0 1e-5
./pruned train.c 10 64 pruned.gradients >losses
./relative_error pruned.gradients dense.gradients 1e-3 0.2
cat losses
awk '/loss/ {last = $4; if (!first) first = last} END {exit !(first > 5 && last < first - 1)}' losses ||
    fail "the loss did not go down"
