#!/usr/bin/env bash
# RUSTC_WRAPPER of hack/fuzz.sh: counts coverage, as cargo-fuzz does, in hearth itself and in the fuzzers. On the stable
# toolchain; no sanitizer is needed where no memory is unsafe. All other crates stay as the tests have built them.
rustc=$1
shift
flags=()
case " $* " in
  *" --crate-name build_script_build "*) ;;
  *'feature="fuzzing"'* | *" --crate-name fuzz_"*)
    flags=(-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
      -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1)
    ;;
esac
exec "$rustc" "$@" "${flags[@]}"
