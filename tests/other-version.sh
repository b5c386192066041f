#!/usr/bin/env bash
# An older alluvium, for the tests that let two versions share a bucket.
#
#   tests/other-version.sh [COMMIT]    builds it into target/other-version, once
#
# The default is the last commit that knew feature level 2 only: it has never heard of history. The repository must hold
# the commit: a shallow clone does not (exit code 77).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
commit=${1:-b4be7503fbb1}
mkdir -p "$target/other-version"
target=$(cd "$target" && pwd)
dir=$target/other-version
[ -x "$dir/alluvium" ] && [ "$(cat "$dir/commit" 2>/dev/null)" = "$commit" ] && exit
git -C "$root" cat-file -e "$commit^{commit}" 2>/dev/null || { echo "commit $commit is not in this clone" >&2; exit 77; }
rm -rf "$dir/source" "$dir/commit"
mkdir "$dir/source"
git -C "$root" archive "$commit" | tar -x -C "$dir/source"
# What both versions depend on is compiled once: only what is built at the end goes to a directory of its own.
(cd "$dir/source" && CARGO_BUILD_BUILD_DIR=$target nice cargo build --locked --workspace --bin alluvium --target-dir "$dir/built")
cp "$dir/built/debug/alluvium" "$dir/alluvium"
echo "$commit" >"$dir/commit"
