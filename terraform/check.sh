#!/usr/bin/env bash
# Is the Terraform module right, as far as that can be told without its providers?
#
#   terraform/check.sh
#
# builds terraform/check (Go 1.26 or newer; half a minute the first time), runs it, and sees that it finds what is broken
# on purpose. It says nothing about arguments of resources: `tofu validate` does, where the registry can be reached.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
tools=${CARGO_TARGET_DIR:-$root/target}/tools
command -v go >/dev/null || { echo "missing: go (1.26 or newer)" >&2; exit 1; }
mkdir -p "$tools"
tools=$(cd "$tools" && pwd)
(cd "$root/terraform/check" && GOFLAGS='-trimpath -mod=readonly' nice go build -p 2 -ldflags '-s -w' -o "$tools/terraform-check" .)
(cd "$root" && "$tools/terraform-check" terraform)

# The checker must be able to fail, too.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
# broken WORDS FILE SED: with this change it must say these words.
broken() {
    rm -rf "$work/terraform"
    cp -r "$root/terraform" "$work/terraform"
    sed -i "$3" "$work/terraform/$2"
    if cmp -s "$root/terraform/$2" "$work/terraform/$2"; then
        echo "FAILED   $3 changes nothing in $2"
        failed=1
    elif log=$(cd "$work" && "$tools/terraform-check" terraform 2>&1) || ! grep -qF -- "$1" <<<"$log"; then
        echo "FAILED   $3 in $2 is not found: $log"
        failed=1
    else
        echo "ok       finds: $1"
    fi
}
broken "is not laid out as" bucket.tf 's/^  force_destroy = /  force_destroy   = /'
broken "Invalid multi-line string" outputs.tf 's/^output "bucket" {/output bucket" {/'
broken "var.buckt is not declared" bucket.tf 's/= var\.bucket$/= var.buckt/'
broken "local.store_ur is not declared" outputs.tf 's/local\.store_url/local.store_ur/'
broken "aws_iam_role.that is not declared" outputs.tf 's/aws_iam_role\.this/aws_iam_role.that/'
broken "aws_s3_bucket.this has a count, so it needs an index" bucket.tf 's/aws_s3_bucket\.this\[0\]/aws_s3_bucket.this/'
broken "needs provider helm, which is not in required_providers" versions.tf 's/^    helm = {/    help = {/'
broken "variable bucket lets \"my.bucket\" through" variables.tf 's/\[a-z0-9-\]{1,61}/[a-z0-9.-]{1,61}/'
broken "variable prefix refuses \"\"" variables.tf '/var.prefix/s/)?\$"/)$"/'
broken "refuses its own default" variables.tf '/^variable "name"/,/^}/s/default     = "alluvium"/default     = "Alluvium"/'
broken "module alluvium has no variable buckets" examples/eks/main.tf 's/^  bucket = var/  buckets = var/'
broken "module alluvium needs bucket" examples/eks/main.tf '/^  bucket = var/d'
broken "module alluvium has no output role" examples/eks/outputs.tf 's/alluvium\.role_arn/alluvium.role/'
broken "expiration: nothing in the bucket may expire" bucket.tf 's/^    filter {}/    filter {}\n\n    expiration {\n      days = 1\n    }/'
broken "statement Objects does not allow a list of actions" policy.json.tftpl 's/"s3:GetObject"/"s3:Get*"/'
broken "has no row for \`prefix\`" README.md '/^| `prefix` |/d'
[ $failed = 0 ]
