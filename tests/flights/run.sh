#!/usr/bin/env bash
# A year of real flights through a broker that is killed three times, and every record compared with the file; then the
# same from Parquet, of which DuckDB, Polars and pyarrow are asked what the file answers, and Spark where it is installed
# (tests/clients/install.sh spark: it needs Java and Maven).
#
#   tests/flights/run.sh [--store URL] [--bin PATH] [--limit ROWS] [--broker COMMAND] [--recent] [--keep]
#
#   --store URL       where the broker keeps its data: file:///path or s3://bucket/prefix, the latter with the
#                     usual AWS_* variables (default: a fresh directory, removed after success)
#   --bin PATH        the alluvium binary (default: FLIGHTS_BIN, else a release build)
#   --limit ROWS      only the first rows of the file
#   --broker COMMAND  another broker to compare with: a shell command, in which {port} is replaced
#   --recent          timestamps of today and not of 2013. Apache Kafka (4.3.1) needs it to pass: it forgets an
#                     idempotent producer whose newest record has an old timestamp when it starts, and then
#                     appends a retried batch a second time
#   --keep            keep the data and the broker's log
#
# Exit code 0: every record is there once, in order, unchanged. Needs Python 3 (3.10 or newer, with venv) and, the
# first time, the network: it installs what it uses below target/clients (or CLIENTS_DIR).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
dir=${CLIENTS_DIR:-${CARGO_TARGET_DIR:-$root/target}/clients}

for argument in "$@"; do
    case $argument in
    # Help needs nothing installed.
    -h | --help) exec sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" ;;
    esac
done
"$root/tests/clients/install.sh" python flights analytics >&2
bin=${FLIGHTS_BIN:-}
build=1
for argument in "$@"; do
    case $argument in
    --bin | --bin=* | --broker | --broker=*) build=0 ;;
    esac
done
if [ -z "$bin" ] && [ $build = 1 ]; then
    (cd "$root" && cargo build --release --bin alluvium) >&2
    bin=${CARGO_TARGET_DIR:-$root/target}/release/alluvium
fi
spark=()
[ ! -e "$dir/spark.installed" ] || spark=(--spark)
exec env PYTHONDONTWRITEBYTECODE=1 "$dir/venv/bin/python" "$here/flights.py" --csv "$dir/flights/flights.csv.zip" \
    --analytics "$dir/analytics/bin/python" ${spark[@]+"${spark[@]}"} \
    ${bin:+--bin "$bin"} "$@"
