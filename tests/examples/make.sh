#!/bin/sh
# make.sh MAKE SOURCE PREFIX WORK COMPILER: builds and runs a copy of the Makefile's project with the
# libhpa in PREFIX.
set -eu
make=$1 source=$2 prefix=$3 work=$4 compiler=$5

rm -rf "$work"
mkdir -p "$work"
cp "$source"/Makefile "$source"/*.cpp "$work"
pc=$(find "$prefix" -name hpa.pc)
export PKG_CONFIG_PATH="${pc%/*}"
"$make" -C "$work" CXX="$compiler" CXXFLAGS='-O2 -Wall -Wextra -Werror'
LD_LIBRARY_PATH=$(pkg-config --variable=libdir hpa) "$work/needles"
