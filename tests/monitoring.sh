#!/usr/bin/env bash
# A real Prometheus for the tests.
#
#   tests/monitoring.sh install     Debian's package, unpacked below target/tools/prometheus; nothing is installed in
#                                   the system, and no right of root is needed
#   tests/monitoring.sh which NAME  the path of prometheus or promtool: that one, or else the system's
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
tools=${CARGO_TARGET_DIR:-$root/target}/tools

case ${1:-} in
install)
    "$0" which prometheus >/dev/null && "$0" which promtool >/dev/null && exit
    command -v apt-get >/dev/null || { echo "missing: apt-get, or install Prometheus some other way" >&2; exit 1; }
    mkdir -p "$tools"
    tools=$(cd "$tools" && pwd)
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    cd "$work"
    # What the lists of packages name may be gone from the mirror.
    apt-get download -qq prometheus || {
        sudo=()
        [ "$(id -u)" = 0 ] || sudo=(sudo -n)
        "${sudo[@]}" apt-get update -qq
        apt-get download -qq prometheus
    }
    dpkg-deb --extract prometheus_*.deb unpacked
    rm -rf "$tools/prometheus"
    mv unpacked "$tools/prometheus"
    ;;
which)
    name=${2:?prometheus or promtool}
    path="$tools/prometheus/usr/bin/$name"
    [ -x "$path" ] || path=$(command -v "$name") || { echo "$name is not installed: tests/monitoring.sh install" >&2; exit 77; }
    echo "$path"
    ;;
*)
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
    exit 2
    ;;
esac
