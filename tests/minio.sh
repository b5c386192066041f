#!/usr/bin/env bash
# A real MinIO for the tests.
#
#   tests/minio.sh install                    builds it (about 5 minutes) into target/tools, once
#   tests/minio.sh serve DIR PORT [BUCKET]    serves DIR with that bucket on 127.0.0.1, in the foreground
#   tests/minio.sh env PORT                   the AWS_* variables for it, to be evaluated
#
# Then, for example:  eval "$(tests/minio.sh env 9000)"; tests/flights/run.sh --store s3://alluvium/flights
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
tools=${CARGO_TARGET_DIR:-$root/target}/tools
# The newest commit of the archived repository; its release tags are not Go module versions.
version=v0.0.0-20260212201848-7aac2a2c5b7c

case ${1:-} in
install)
    mkdir -p "$tools"
    tools=$(cd "$tools" && pwd)
    [ -x "$tools/minio" ] && [ "$(cat "$tools/minio.version" 2>/dev/null)" = $version ] && exit
    command -v go >/dev/null || { echo "missing: go (1.26 or newer), to build MinIO" >&2; exit 1; }
    rm -f "$tools/minio.version"
    # From an empty directory, so that no go.mod of ours takes part.
    work=$(mktemp -d)
    (cd "$work" && GOBIN="$tools" GOFLAGS=-trimpath nice go install -p "${MINIO_BUILD_JOBS:-2}" -ldflags '-s -w' "github.com/minio/minio@$version")
    rmdir "$work"
    echo $version >"$tools/minio.version"
    ;;
serve)
    dir=${2:?directory} port=${3:?port} bucket=${4:-alluvium}
    [ -x "$tools/minio" ] || { echo "MinIO is not built: tests/minio.sh install" >&2; exit 77; }
    # On one drive a bucket is a directory of the drive.
    mkdir -p "$dir/$bucket"
    export MINIO_ROOT_USER=alluvium-test MINIO_ROOT_PASSWORD=alluvium-test MINIO_BROWSER=off MINIO_UPDATE=off MINIO_CALLHOME_ENABLE=off
    exec "$tools/minio" server --quiet --address "127.0.0.1:$port" "$dir"
    ;;
env)
    port=${2:?port}
    cat <<END
export AWS_ACCESS_KEY_ID=alluvium-test AWS_SECRET_ACCESS_KEY=alluvium-test AWS_REGION=us-east-1
export AWS_ENDPOINT_URL=http://127.0.0.1:$port AWS_ALLOW_HTTP=true
END
    ;;
*)
    sed -n '2,9s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
