#!/usr/bin/env bash
# Is the chart right? Without a cluster:
#
#   helm/check.sh install     builds Helm and helm/check into target/tools, once (a few minutes)
#   helm/check.sh             lints the chart, renders every set of values in ci/, has the validation of Kubernetes' own
#                             API server look at the result, and sees that bad values are refused with a clear word
#   helm/check.sh TOOL ...    runs one of the tools: helm or check
#
# Validators that go by schemas, such as kubeconform, fetch them from the network and know no more than names and types.
# helm/check has the code that an API server runs.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
tools=${CARGO_TARGET_DIR:-$root/target}/tools
chart=$root/helm/alluvium
helm_version=v4.3.1

install() {
    command -v go >/dev/null || { echo "missing: go (1.26 or newer), to build Helm" >&2; exit 1; }
    mkdir -p "$tools"
    tools=$(cd "$tools" && pwd)
    local jobs=${HELM_BUILD_JOBS:-2}
    if [ ! -x "$tools/helm" ] || [ "$(cat "$tools/helm.version" 2>/dev/null)" != $helm_version ]; then
        # From an empty directory, so that no go.mod of ours takes part.
        local work
        work=$(mktemp -d)
        (cd "$work" && GOBIN="$tools" GOFLAGS=-trimpath nice go install -p "$jobs" -ldflags '-s -w' "helm.sh/helm/v4/cmd/helm@$helm_version")
        rmdir "$work"
        echo $helm_version >"$tools/helm.version"
    fi
    # Go sees itself whether anything has changed.
    (cd "$root/helm/check" && GOFLAGS='-trimpath -mod=readonly' nice go build -p "$jobs" -ldflags '-s -w' -o "$tools/helm-check" .)
}

need() {
    [ -x "$tools/helm" ] && [ -x "$tools/helm-check" ] || { echo "Helm is not built: helm/check.sh install" >&2; exit 77; }
}

passed=0
failed=0
# outcome NAME CODE [LOG]
outcome() {
    if [ "$2" = 0 ]; then
        passed=$((passed + 1))
        echo "ok       $1"
    else
        failed=$((failed + 1))
        echo "FAILED   $1"
        sed 's/^/    /' <<<"${3:-}"
    fi
}

# expect NAME COMMAND...: the command must succeed.
expect() {
    local name=$1 code=0 log
    shift
    log=$("$@" 2>&1) || code=$?
    outcome "$name" $code "$log"
}

render() {
    "$tools/helm" template trial "$chart" --namespace streams "$@"
}

rendered() {
    render "$@" | "$tools/helm-check"
}

# refused WORDS ARGUMENT...: Helm must fail with these words.
refused() {
    local words=$1 code=0 log
    shift
    if log=$(render "$@" 2>&1); then
        outcome "refused: $*" 1 "it was rendered"
        return
    fi
    grep -qF -- "$words" <<<"$log" || code=1
    outcome "refused: $words" $code "$log"
}

# shows TEXT ARGUMENT...: the rendered manifests must have this line (or part of one).
shows() {
    local words=$1 code=0 log
    shift
    log=$(render "$@" 2>&1) || code=$?
    [ $code != 0 ] || grep -qF -- "$words" <<<"$log" || code=1
    outcome "shows: $words" $code "$log"
}

# lacks TEXT ARGUMENT...: the rendered manifests must not have it.
lacks() {
    local words=$1 code=0 log
    shift
    log=$(render "$@" 2>&1) || code=$?
    ! grep -qF -- "$words" <<<"$log" || code=1
    outcome "lacks: $words" $code "$log"
}

# A copy of the chart in which a cluster has seven brokers, and the notes are a manifest, so that they can be looked at.
played() {
    local copy=$1
    cp -r "$chart/." "$copy"
    sed -i 's|lookup "apps/v1" .* -}}|dict "spec" (dict "replicas" 7) -}}|' "$copy/templates/_helpers.tpl"
    { echo '{{- define "notes" -}}'; cat "$chart/templates/NOTES.txt"; echo '{{- end -}}'; } >"$copy/templates/_notes.tpl"
    rm "$copy/templates/NOTES.txt"
    cat >"$copy/templates/notes.yaml" <<'END'
apiVersion: v1
kind: ConfigMap
metadata:
  name: notes
data:
  notes: |
    {{- include "notes" . | nindent 4 }}
END
}

# The values that the Terraform module gives, each with something in it.
terraform_values() {
    awk '/yamlencode\(\{/ { on = 1; next } on && /^ *}\)/ { exit } on' "$root/terraform/helm.tf" |
        sed -E '/^ *(#|\})/d; s/ += \{$/:/; s/ += var\.helm\.replicas$/: 3/
            s/ += local\.irsa_annotations$/: { "eks.amazonaws.com\/role-arn": role }/; s/ += .*/: something/'
}

# same NAME FILTER FIRST SECOND: two sets of arguments (words without spaces) must render the same lines of a pattern, and
# at least one.
same() {
    local name=$1 filter=$2 first second code=0
    # shellcheck disable=SC2086
    first=$(render $3 | grep -A1 -- "$filter") && second=$(render $4 | grep -A1 -- "$filter") || code=1
    [ "$first" = "$second" ] || code=1
    outcome "$name" $code "$first"$'\n'"$second"
}

check() {
    local values bucket
    bucket="bucket.name=logs,bucket.region=eu-central-1"
    for values in "$chart"/ci/*.yaml; do
        expect "lint $(basename "$values")" "$tools/helm" lint --strict --quiet "$chart" -f "$values"
        expect "render $(basename "$values")" rendered -f "$values"
    done
    expect "the smallest set of values" rendered --set $bucket
    expect "an older Kubernetes" rendered --set $bucket --kube-version 1.28.0
    expect "node ports of one's own" rendered --set $bucket -f "$chart/ci/nodeport.yaml" \
        --set 'external.nodePorts.brokers={31000,31010,31020}'
    expect "the longest names" rendered --set $bucket,external.enabled=true,external.host='b{ordinal}' \
        --set 'external.sourceRanges={0.0.0.0/0}' --set fullnameOverride=a-name-with-forty-characters-is-the-longest
    local page=$root/docs/kubernetes.md examples
    examples=$(mktemp -d)
    awk -v dir="$examples" '/^```yaml/ { n++; on = 1; next } /^```/ { on = 0 } on { print >(dir "/" n ".yaml") }' "$page"
    for values in "$examples"/*.yaml; do
        expect "docs/kubernetes.md, example $(basename "$values" .yaml)" rendered --set $bucket -f "$values"
    done
    rm -r "$examples"
    expect "values in the README" "$tools/helm-check" --values "$chart/README.md" "$chart/values.yaml"
    if [ -d "$root/monitoring" ]; then
        expect "alerts are those of monitoring/" cmp "$root/monitoring/alerts.yaml" "$chart/files/alerts.yaml"
    else
        echo "skipped: alerts: there is no monitoring/ here"
    fi

    local work
    work=$(mktemp -d)
    terraform_values >"$work/terraform.yaml"
    expect "the values of terraform/helm.tf" rendered -f "$work/terraform.yaml"

    # Two releases on one bucket are one cluster for the alerts; two trials are not.
    same "releases on one bucket have one job" "targetLabel: job" \
        "--set $bucket,serviceMonitor.enabled=true,fullnameOverride=a" \
        "--set $bucket,serviceMonitor.enabled=true,fullnameOverride=b,firstNodeId=100"
    shows "replacement: alluvium/logs/a-b/c" --set $bucket,serviceMonitor.enabled=true --set 'bucket.prefix=a$b/c'
    shows "replacement: alluvium/trial-alluvium-minio/alluvium/alluvium" --set minio.enabled=true,serviceMonitor.enabled=true
    shows "sourceLabels: [__meta_kubernetes_pod_name]" --set $bucket,serviceMonitor.enabled=true
    shows "runbook_url: https://git.example.com/docs/operations.md#alert-broker-down" \
        --set $bucket,prometheusRule.enabled=true,prometheusRule.runbookBase=https://git.example.com/

    # What an autoscaler has made of the number stays; without a cluster to ask it is within the autoscaler's bounds.
    local scaling=$bucket,autoscaling.enabled=true
    shows "  replicas: 3" --set "$scaling",replicas=1
    shows "  replicas: 5" --set "$scaling",replicas=5
    shows "  replicas: 9" --set "$scaling",replicas=12
    mkdir "$work/played"
    played "$work/played"
    chart=$work/played shows "  replicas: 7" --set "$scaling"
    chart=$work/played shows "  replicas: 3" --set "$bucket"

    # Brokers to come have all but themselves, and nobody restarts for them.
    local balancers="$bucket,external.enabled=true,external.host=b{ordinal},external.sourceRanges[0]=10.0.0.0/8"
    expect "brokers to come" rendered --set "$balancers,external.reserve=2"
    shows "name: trial-alluvium-4-external" --set "$balancers,external.reserve=2"
    shows "  trial-alluvium-4.properties: |" --set "$balancers,external.reserve=2"
    same "brokers to come restart nobody" checksum/config "--set $balancers" "--set $balancers,external.reserve=2"
    same "other sources restart nobody" checksum/config "--set $balancers" \
        "--set $balancers,external.sourceRanges[0]=10.1.0.0/16"
    refused "external.hosts has 3 entries for 5 brokers" \
        --set "$balancers,external.reserve=2" --set 'external.hosts={a,b,c}'

    # Commands by `kubectl exec` find the settings; only what asks the API of Kubernetes has a token for it.
    shows 'value: /etc/alluvium/$(POD_NAME).properties' -f "$chart/ci/nodeport.yaml"
    shows "value: /run/alluvium/server.properties" -f "$chart/ci/secret.yaml"
    shows "mountPath: /var/run/secrets/kubernetes.io/serviceaccount" -f "$chart/ci/secret.yaml"
    lacks "automountServiceAccountToken: true" -f "$chart/ci/secret.yaml"

    shows '--address "[::]:9000"' --set minio.enabled=true,listenAddress=::
    shows "- port: s3" --set minio.enabled=true,networkPolicy.enabled=true --set 'networkPolicy.egress[0].ports[0].port=443'
    local scraped=$bucket,networkPolicy.enabled=true,serviceMonitor.enabled=true
    chart=$work/played shows "networkPolicy.metrics is empty" --set "$scraped"
    chart=$work/played lacks "networkPolicy.metrics is empty" -f "$chart/ci/aws.yaml"
    chart=$work/played shows "Brokers may have no rack" --set $bucket --kube-version 1.34.2
    chart=$work/played lacks "Brokers may have no rack" --set $bucket --kube-version 1.35.0
    chart=$work/played lacks "Brokers may have no rack" --set $bucket,rack.from=none --kube-version 1.34.2
    rm -r "$work"

    refused "bucket.name is not set"
    refused "bucket.region is not set" --set bucket.name=logs
    refused "additional properties 'replica' not allowed" --set $bucket,replica=5
    refused "additional properties 'nodeport' not allowed" --set $bucket,external.nodeport=5
    refused "got string, want integer" --set $bucket,replicas=many
    refused "external.host is not set" --set $bucket,external.enabled=true
    refused "external.sourceRanges is not set: there is no authentication" \
        --set $bucket,external.enabled=true,external.host='b{ordinal}'
    refused "broker 0 and broker 1 would both be told to clients as b:9094" \
        --set $bucket,external.enabled=true,external.host=b,external.sourceRanges[0]=10.0.0.0/8
    refused "external.hosts has 2 entries for 3 brokers" \
        --set $bucket,external.enabled=true --set 'external.hosts={a,b},external.sourceRanges={10.0.0.0/8}'
    local node_ports=$bucket,external.enabled=true,external.type=NodePort,external.host=n
    refused "broker 0 and broker 2 would both have node port 31000" \
        --set "$node_ports" --set 'external.nodePorts.brokers={31000,31001,31000}'
    refused "bootstrap and broker 1 would both have node port 30092" --set "$node_ports",external.nodePorts.first=30091
    refused "external.nodePorts.brokers has 1 entries for 3 brokers" \
        --set "$node_ports" --set 'external.nodePorts.brokers={31000}'
    refused "external.sourceRanges would hold nobody off" --set "$node_ports",external.sourceRanges[0]=10.0.0.0/8
    refused "external.sourceRanges would hold nobody off" \
        --set "$node_ports",external.sourceRanges[0]=10.0.0.0/8,networkPolicy.enabled=true
    expect "node ports for some networks" rendered \
        --set "$node_ports",external.sourceRanges[0]=10.0.0.0/8,networkPolicy.enabled=true,external.trafficPolicy=Local
    refused "ports.kafka and ports.http are the same" --set $bucket,ports.http=9092
    refused "ports.external and ports.kafka are the same" --set "$node_ports",ports.external=9092
    refused "ports.external and ports.http are the same" --set "$node_ports",ports.external=9464
    refused "additional properties 'limit' not allowed" --set $bucket,resources.limit.memory=1Gi
    refused "additional properties 'request' not allowed" --set minio.enabled=true,minio.resources.request.cpu=1
    refused "external.hosts has 1 entries for 9 brokers" \
        --set "$node_ports",autoscaling.enabled=true --set 'external.hosts={a}'
    refused "config: listeners is set by the chart: use the value ports and external instead" \
        --set $bucket,config.listeners=x
    refused "config: the value of log.level has a line break" --set $bucket --set-json '{"config":{"log.level":"a\nb"}}'
    refused "terminationGracePeriodSeconds (20) is too short" --set $bucket,terminationGracePeriodSeconds=20
    refused "5 s for the rest need 70" --set $bucket --set-json '{"config":{"shutdown.timeout.ms":60000}}'
    refused "rack.image is not set" --set $bucket,rack.from=node
    refused "rack.value is not set" --set $bucket,rack.from=value
    refused "minio.enabled brings its own endpoint" --set minio.enabled=true,bucket.endpoint=http://m:9000
    refused "autoscaling.minReplicas (9) is more than" \
        --set $bucket,autoscaling.enabled=true,autoscaling.minReplicas=9,autoscaling.maxReplicas=3

    # The checker must be able to fail, too.
    local broken
    for broken in 's/containerPort: 9464/containerPort: 94640/' 's/targetPort: kafka/targetPort: kavka/' \
        's/podManagementPolicy:/podManagment:/' 's/port: http$/port: htp/' 's/runAsNonRoot: true/runAsNonRoot: false/' \
        's/trial-alluvium-2.properties/trial-alluvium-8.properties/' 's/pod-name: trial-alluvium-2/pod-name: trial-alluvium-8/'; do
        if render --set "$node_ports" | sed "$broken" | "$tools/helm-check" >/dev/null 2>&1; then
            outcome "a manifest with $broken is wrong" 1 "it passed"
        else
            outcome "a manifest with $broken is wrong" 0
        fi
    done

    echo "$passed passed, $failed failed"
    [ $failed = 0 ]
}

case ${1:-} in
install) install ;;
"") need && check ;;
helm) need && shift && exec "$tools/helm" "$@" ;;
check) need && shift && exec "$tools/helm-check" "$@" ;;
*)
    sed -n '2,10s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
