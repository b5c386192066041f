#!/usr/bin/env bash
# Runs the scenarios of one client against a broker; one JSON line each on standard output.
#
#   tests/clients/run.sh CLIENT BOOTSTRAP PREFIX [SCENARIO...]
#   tests/clients/run.sh --installed CLIENT        only looks whether the client is there
#
# CLIENT is one of confluent-kafka kafka-python aiokafka kcat kafka-tools kafka-clients franz-go sarama kafka-go
# kafkajs. BOOTSTRAP is the address of a broker that runs, such as 127.0.0.1:9092. PREFIX starts the names of all
# topics and groups; take another one for each run.
#
# Exit code: 0 all succeeded, 1 one failed, 2 called wrongly, 77 the client is not installed (see install.sh).
set -euo pipefail
usage() {
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
dir=${CLIENTS_DIR:-${CARGO_TARGET_DIR:-$root/target}/clients}
only_look=0
if [ "${1:-}" = --installed ]; then
    only_look=1
    shift
fi
case ${1:-} in
-h | --help)
    usage
    exit
    ;;
esac
if [ $# -lt $((only_look ? 1 : 3)) ]; then
    usage >&2
    exit 2
fi
client=$1
shift

installed() {
    [ -e "$dir/$1.installed" ] || { echo "$client is not installed: tests/clients/install.sh $1" >&2; exit 77; }
    [ $only_look = 0 ] || exit 0
}

case $client in
confluent-kafka | kafka-python | aiokafka)
    installed python
    case $client in
    confluent-kafka) program=confluent ;;
    kafka-python) program=kafka_python ;;
    aiokafka) program=aio ;;
    esac
    exec env PYTHONDONTWRITEBYTECODE=1 "$dir/venv/bin/python" -W ignore "$here/python/$program.py" "$@"
    ;;
kcat)
    installed kcat
    exec env PYTHONDONTWRITEBYTECODE=1 python3 "$here/python/kcat.py" "$@"
    ;;
kafka-tools)
    installed java
    export KAFKA_TOOLS_CLASSPATH="$dir/java/lib/*" KAFKA_TOOLS_ARCHIVE="$dir/java/tools.jsa"
    exec env PYTHONDONTWRITEBYTECODE=1 python3 "$here/python/tools.py" "$@"
    ;;
kafka-clients)
    installed java
    exec java -Xmx512m -XX:+UseSerialGC -cp "$dir/java/classes:$dir/java/lib/*" Clients "$@"
    ;;
franz-go | sarama | kafka-go)
    installed go
    exec "$dir/go/$client" "$@"
    ;;
kafkajs)
    installed node
    exec env CLIENTS_NODE_MODULES="$dir/node" node "$here/node/kafkajs.js" "$@"
    ;;
*)
    echo "no such client: $client; see run.sh --help" >&2
    exit 2
    ;;
esac
