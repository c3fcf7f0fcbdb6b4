#!/bin/sh
# manual_page.sh PROGRAM TITLE VERSION PAGE: writes a manual page out of what PROGRAM --help prints.
set -eu
program=$1 title=$2 version=$3 page=$4
name=${program##*/}

help=$("$program" --help)
mkdir -p "${page%/*}"
{
    printf '.TH %s 1 "" "libhpa %s"\n' "$(echo "$name" | tr a-z A-Z | sed 's/-/\\-/g')" "$version"
    printf '.SH NAME\n%s \\- %s\n' "$(echo "$name" | sed 's/-/\\-/g')" "$title"
    printf '.SH DESCRIPTION\n.nf\n'
    # A backslash and a hyphen mean something to troff, and so does a dot or quote that begins a line.
    printf '%s\n' "$help" | sed 's/\\/\\e/g; s/-/\\-/g; s/^\([.'\'']\)/\\\&\1/'
    printf '.fi\n.SH SEE ALSO\n'
    printf 'The header hpa/hpa.h, which is the manual of the library.\n'
} >"$page.new"
mv "$page.new" "$page"
