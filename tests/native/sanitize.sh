#!/usr/bin/env bash
# Builds the native kernels with a test of their own under AddressSanitizer with
# UndefinedBehaviorSanitizer, and under ThreadSanitizer, and runs it. Some minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
sources=engine_worker/compute/backends/cpu_native/src
build=build/sanitize
cxx=${CXX:-g++}
avx512="-mavx2 -mfma -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512"
declare -A levels=(
  [amx]="$avx512 -mavx512vnni -mavx512bf16 -mamx-tile -mamx-bf16 -mamx-int8"
  [avx512_bf16]="$avx512 -mavx512vnni -mavx512bf16" [avx512_vnni]="$avx512 -mavx512vnni" [avx512]="$avx512"
  [avx2_vnni]="-mavx2 -mfma -mavxvnni" [avx2]="-mavx2 -mfma" [generic]=""
)
names=${PENSTOCK_KERNEL_LEVELS:-"amx avx512_bf16 avx512_vnni avx512 avx2_vnni avx2 generic"}
[ "$(uname -m)" = x86_64 ] || names=generic
for sanitizer in address,undefined thread; do
  folder=$build/$sanitizer
  mkdir -p "$folder"
  flags="-std=c++17 -O1 -g -fsanitize=$sanitizer -fno-sanitize-recover=all -ffp-contract=fast -pthread -I$sources"
  # shellcheck disable=SC2086  # the options are words
  for name in $names; do
    $cxx $flags ${levels[$name]} -DPENSTOCK_LEVEL="$name" -c "$sources/level.cc" -o "$folder/$name.o" &
  done
  wait
  # shellcheck disable=SC2046,SC2086
  $cxx $flags "-DPENSTOCK_LEVELS=$(printf 'LEVEL(%s) ' $names)" "$sources"/{levels,library,handlers,thread_pool}.cc \
    tests/native/kernels_test.cc $(printf "$folder/%s.o " $names) -o "$folder/kernels_test"
  echo "$sanitizer:"
  # ThreadSanitizer of GCC 12 doesn't know the memory layout of newer kernels with random addresses.
  setarch -R "$folder/kernels_test"
done
