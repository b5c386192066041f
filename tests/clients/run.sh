#!/usr/bin/env bash
# Runs the scenarios of one client against a broker; one JSON line each on standard output.
#
#   tests/clients/run.sh CLIENT BOOTSTRAP PREFIX [SCENARIO...]
#   tests/clients/run.sh --installed CLIENT        only looks whether the client is there
#
# Exit code: 0 all succeeded, 1 one failed, 77 the client is not installed (see install.sh).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
dir=${ALLUVIUM_CLIENTS_DIR:-${CARGO_TARGET_DIR:-$root/target}/clients}
only_look=0
if [ "${1:-}" = --installed ]; then
    only_look=1
    shift
fi
client=${1:?usage: run.sh CLIENT BOOTSTRAP PREFIX [SCENARIO...]}
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
    echo "no such client: $client" >&2
    exit 2
    ;;
esac
