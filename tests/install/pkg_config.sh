#!/bin/sh
# pkg_config.sh COMPILER STANDARD LANGUAGE LINKAGE PREFIX WORK: build and run the consumer with what
# pkg-config says. LINKAGE is shared or static. WORK is a folder to build in.
set -eu
compiler=$1 standard=$2 language=$3 linkage=$4 prefix=$5 work=$6

pc=$(find "$prefix" -name hpa.pc)
export PKG_CONFIG_PATH="${pc%/*}"
static=
if [ "$linkage" = static ]; then
    static=-static
fi
mkdir -p "$work"
# The flags are several words each.
# shellcheck disable=SC2046,SC2086
"$compiler" -std="$standard" -Wall -Wextra -Werror $static $(pkg-config --cflags hpa) \
    -x "$language" "$(dirname "$0")/consumer/consumer.c" -x none -o "$work/consumer" \
    $(pkg-config ${static:+--static} --libs hpa) -lm
LD_LIBRARY_PATH=$(pkg-config --variable=libdir hpa) "$work/consumer"
