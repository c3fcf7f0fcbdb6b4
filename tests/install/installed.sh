#!/bin/sh
# installed.sh PREFIX VERSION: what lies in the prefix is what a packager expects.
set -eu
prefix=$1 version=$2

fail() {
    echo "$1" >&2
    exit 1
}

library=$(find "$prefix" -name libhpa.so)
[ -n "$library" ] || fail "no libhpa.so in $prefix"
soname=$(readelf -d "$library" | sed -n 's/.*SONAME.*\[\(.*\)\]/\1/p')
echo "$soname" | grep -Eqx 'libhpa\.so\.[0-9]+(\.[0-9]+)?' || fail "SONAME is '$soname'"
[ -e "${library%/*}/$soname" ] || fail "$soname is not installed"
[ -n "$(find "$prefix" -name "libhpa.so.$version")" ] || fail "no libhpa.so.$version"
[ -n "$(find "$prefix" -name libhpa.a)" ] || fail "no libhpa.a"

# Linkers add _init, _fini and the like on some systems; everything else that is visible is hpa_*.
stray=$(nm -D --defined-only "$library" | awk '{print $3}' | sed 's/@.*//' |
    grep -Ev '^(hpa_.*|_init|_fini|_edata|_end|__bss_start)$' || true)
[ -z "$stray" ] || fail "visible symbols that are not hpa_*: $stray"

for program in "$prefix"/bin/*; do
    "$program" --help >/dev/null || fail "$program --help failed"
done
