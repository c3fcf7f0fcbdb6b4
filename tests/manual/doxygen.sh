#!/bin/sh
# doxygen.sh DOXYGEN SOURCE WORK: the manual is rendered without a warning, every declaration is in it,
# and one that nobody documented is not let through.
set -eu
doxygen=$1 source=$2 work=$3

fail() {
    echo "$1" >&2
    exit 1
}

rm -rf "$work"
mkdir -p "$work/good" "$work/bad" "$work/source"
cp -r "$source/include" "$source/manual" "$source/README.md" "$work/source"
cd "$work/source"
HPA_MANUAL=$work/good "$doxygen" manual/Doxyfile
for page in index hpa_8h gradcheck_8h dlpack_8h structhpa__desc; do
    [ -s "$work/good/html/$page.html" ] || fail "no page $page"
done
for call in $(sed -n 's/^HPA_API .*[ *]\(hpa_[a-z_]*\)(.*/\1/p' include/hpa/hpa.h include/hpa/gradcheck.h); do
    grep -q ">$call<" "$work/good/html/hpa_8h.html" "$work/good/html/gradcheck_8h.html" ||
        fail "$call is not in the manual"
done

sed 's/^HPA_API int hpa_version(void);/&\nHPA_API int hpa_undocumented(void);/' include/hpa/hpa.h >h
mv h include/hpa/hpa.h
if HPA_MANUAL=$work/bad "$doxygen" manual/Doxyfile 2>"$work/complaints"; then
    fail "a declaration without a comment was let through"
fi
grep -q 'hpa_undocumented.* is not documented' "$work/complaints" || fail "$(cat "$work/complaints")"
