#!/usr/bin/env bash
# Measures Alluvium beside Apache Kafka on this machine and writes docs/benchmarks.md and docs/benchmarks.json.
#
#   benchmarks/run.sh [--quick] [--only GROUP[,GROUP]] [--runs 3]
#   benchmarks/run.sh --help                     the groups and the other options
#
# It needs Rust, java (17 or newer), mvn, a C compiler and librdkafka's headers (installed with apt where that is
# possible). Everything else goes below target/benchmarks. Nothing else should run on the machine meanwhile.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
mkdir -p "$target/benchmarks"
target=$(cd "$target" && pwd)
dir=$target/benchmarks
# A backtrace costs time where an error is made, and errors are part of some rows.
unset RUST_BACKTRACE RUST_LIB_BACKTRACE RUST_LOG

need() {
    command -v "$1" >/dev/null || { echo "missing: $1 ($2)" >&2; exit 1; }
}

install_kafka() {
    need java "17 or newer"
    need mvn "to fetch Apache Kafka"
    local hash
    hash=$(sha256sum <"$here/pom.xml" | cut -d' ' -f1)
    [ "$(cat "$dir/kafka/installed" 2>/dev/null)" = "$hash" ] && return
    rm -rf "$dir/kafka"
    mvn -q -B -Dstyle.color=never -f "$here/pom.xml" dependency:copy-dependencies \
        -DoutputDirectory="$dir/kafka/lib" -Dmdep.useBaseVersion=true
    echo "$hash" >"$dir/kafka/installed"
}

install_rdkafka() {
    [ -x "$dir/rdkafka" ] && [ "$dir/rdkafka" -nt "$here/rdkafka.c" ] && return
    need cc "a C compiler"
    if ! echo '#include <librdkafka/rdkafka.h>' | cc -E - >/dev/null 2>&1; then
        need apt-get "or install librdkafka's headers some other way"
        local sudo=()
        [ "$(id -u)" = 0 ] || sudo=(sudo -n)
        "${sudo[@]}" apt-get update -qq
        DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends librdkafka-dev
    fi
    cc -O2 -Wall -Wextra -o "$dir/rdkafka" "$here/rdkafka.c" -lrdkafka -lpthread
}

case " $* " in
*" --help "* | *" -h "* | *" --render "*) ;;
*)
    install_kafka
    install_rdkafka
    # Ten thousand connections need as many files in the broker and in the client.
    ulimit -n "$(ulimit -Hn)"
    ;;
esac
if [ -z "${ALLUVIUM_BENCHMARKS_BIN:-}" ]; then
    (cd "$root" && cargo build --release --workspace --bin alluvium --bin s3-fake --bin benchmarks)
    ALLUVIUM_BENCHMARKS_BIN=$target/release
fi
exec "$ALLUVIUM_BENCHMARKS_BIN/benchmarks" --tools "$dir" "$@"
