#!/usr/bin/env bash
# Runs SQL statements on Apache Spark, all of it in one small process.
#
#   tests/spark/run.sh [--json] <STATEMENTS
#
# Each statement ends with a semicolon at the end of a line. Their answers are printed as tables; with --json each as one
# line: {"rows": [...], "scanned": rows that were read from files, "columnar": whether the vectorized reader read them}.
# What Spark has to say besides goes to standard error. AWS_* variables are for s3a://.
#
# Exit code: 0 all succeeded, 77 Spark is not installed (see tests/clients/install.sh).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
dir=${CLIENTS_DIR:-${CARGO_TARGET_DIR:-$root/target}/clients}
[ -e "$dir/spark.installed" ] || { echo "Spark is not installed: tests/clients/install.sh spark" >&2; exit 77; }
opens=()
# Parts of Java that Spark looks into, as its own start scripts have them.
for package in java.lang java.lang.invoke java.lang.reflect java.io java.net java.nio java.util java.util.concurrent \
    java.util.concurrent.atomic jdk.internal.ref sun.nio.ch sun.nio.cs sun.security.action sun.util.calendar; do
    opens+=("--add-opens=java.base/$package=ALL-UNNAMED")
done
exec env SPARK_LOCAL_IP=127.0.0.1 java -Xmx1g -XX:+UseSerialGC -XX:TieredStopAtLevel=1 "${opens[@]}" \
    -cp "$dir/spark/classes:$dir/spark/lib/*" Sql "$@"
