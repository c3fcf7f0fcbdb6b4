#!/bin/sh
# packages.sh CPACK BUILD WORK COMPILER CONSUMER: makes the packages, unpacks them beside each other,
# builds the consumer against what is unpacked, and runs the programs.
set -eu
cpack=$1 build=$2 work=$3 compiler=$4 consumer=$5

fail() {
    echo "$1" >&2
    exit 1
}

rm -rf "$work/deb" "$work/root"
(cd "$build" && "$cpack" -G DEB -B "$work/deb" >/dev/null)
for package in libhpa0 libhpa-dev hpa-tools; do
    file=$(find "$work/deb" -maxdepth 1 -name "${package}_*.deb")
    [ -f "$file" ] || fail "no $package was made"
    dpkg-deb -x "$file" "$work/root"
    dpkg-deb -f "$file" Depends >"$work/$package.depends"
    [ -f "$work/root/usr/share/doc/$package/copyright" ] || fail "$package has no copyright"
done

depends() { # PACKAGE ON
    grep -q "$2" "$work/$1.depends" || fail "$1 does not depend on $2: $(cat "$work/$1.depends")"
}
depends libhpa0 libc6
depends libhpa-dev 'libhpa0 (= '
depends hpa-tools 'libhpa0 (= '
depends hpa-tools libopenblas
depends hpa-tools libjansson

for package in libhpa0 libhpa-dev; do
    grep -q openblas "$work/$package.depends" && fail "$package depends on OpenBLAS"
done

root=$work/root/usr
export LD_LIBRARY_PATH
LD_LIBRARY_PATH=$(dirname "$(find "$root" -name 'libhpa.so.0')")
for program in hpa-gradcheck hpa-bench hpa-finetune; do
    page=$root/share/man/man1/$program.1
    "$root/bin/$program" --help >"$work/help"
    # Every option that the program knows is in its page.
    grep -Eo '^ *--[a-z0-9-]+' "$work/help" | tr -d ' ' | while read -r option; do
        grep -qF -- "$(echo "$option" | sed 's/-/\\-/g')" "$page" || fail "$page lacks $option"
    done
    if command -v man >/dev/null; then
        complaints=$(LC_ALL=C.UTF-8 MANROFFSEQ='' MANWIDTH=120 man --warnings -E UTF-8 -l -Tutf8 -Z \
            "$page" 2>&1 >/dev/null)
        [ -z "$complaints" ] || fail "$page: $complaints"
    fi
done
"$root/bin/hpa-gradcheck" --seq 64 --dim 8 --samples 64

PKG_CONFIG_PATH=$(dirname "$(find "$root" -name hpa.pc)")
export PKG_CONFIG_PATH
# The flags are several words each.
# shellcheck disable=SC2046
"$compiler" -std=c11 $(pkg-config --cflags hpa) "$consumer" -o "$work/consumer" \
    $(pkg-config --libs hpa) -lm
"$work/consumer"
