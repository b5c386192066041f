{{/* What the schema cannot say: values that contradict each other. Each message says what to set. */}}
{{- define "alluvium.validate" -}}
{{- include "alluvium.validateBucket" . -}}
{{- include "alluvium.validateConfig" . -}}
{{- include "alluvium.validateRack" . -}}
{{- include "alluvium.validateTimes" . -}}
{{- if eq (int .Values.ports.kafka) (int .Values.ports.http) -}}
{{- fail "ports.kafka and ports.http are the same" -}}
{{- end -}}
{{- if .Values.external.enabled -}}
{{- include "alluvium.validateExternal" . -}}
{{- end -}}
{{- with .Values.autoscaling -}}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) -}}
{{- fail (printf "autoscaling.minReplicas (%d) is more than autoscaling.maxReplicas (%d)" (int .minReplicas) (int .maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "alluvium.validateBucket" -}}
{{- with .Values -}}
{{- if and (not .bucket.name) (not .minio.enabled) -}}
{{- fail "bucket.name is not set: brokers keep everything in a bucket. Name one, or set minio.enabled=true for a trial" -}}
{{- end -}}
{{- if and (not .bucket.region) (not .bucket.endpoint) (not .minio.enabled) -}}
{{- fail "bucket.region is not set: give the region of the bucket, or bucket.endpoint for a store that is not AWS" -}}
{{- end -}}
{{- if and .minio.enabled (or .bucket.endpoint .bucket.existingSecret) -}}
{{- fail "minio.enabled brings its own endpoint and credentials: unset bucket.endpoint and bucket.existingSecret, or minio.enabled" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "alluvium.validateConfig" -}}
{{- $instead := dict
    "listeners" "ports and external"
    "advertised.listeners" "clusterDomain and external"
    "listener.security.protocol.map" "external"
    "http.listen" "ports.http"
    "store.url" "bucket"
    "node.id" "firstNodeId"
    "broker.id" "firstNodeId"
    "broker.rack" "rack" -}}
{{- range $key, $value := .Values.config -}}
{{- if hasKey $instead $key -}}
{{- fail (printf "config: %s is set by the chart: use the value %s instead" $key (get $instead $key)) -}}
{{- end -}}
{{- if regexMatch "[\n\r]" (toString $value) -}}
{{- fail (printf "config: the value of %s has a line break" $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "alluvium.validateRack" -}}
{{- with .Values.rack -}}
{{- if and (eq .from "value") (not .value) -}}
{{- fail "rack.from is value, and rack.value is not set" -}}
{{- end -}}
{{- if and (eq .from "node") (not .image) -}}
{{- fail "rack.from is node, and rack.image is not set: name an image that has sh and kubectl" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "alluvium.validateTimes" -}}
{{- $stopMs := int64 (get .Values.config "shutdown.timeout.ms" | default 20000) -}}
{{- $stop := int64 (ceil (divf $stopMs 1000)) -}}
{{- $needed := add $stop (int .Values.preStopSeconds) 5 -}}
{{- if lt (int64 .Values.terminationGracePeriodSeconds) (int64 $needed) -}}
{{- fail (printf "terminationGracePeriodSeconds (%d) is too short: brokers would be killed while they hand over. preStopSeconds, shutdown.timeout.ms and 5 s for the rest need %d" (int64 .Values.terminationGracePeriodSeconds) (int64 $needed)) -}}
{{- end -}}
{{- end -}}

{{- define "alluvium.validateExternal" -}}
{{- $external := .Values.external -}}
{{- $brokers := int (include "alluvium.brokers" .) -}}
{{- if and (not $external.host) (not $external.hosts) -}}
{{- fail "external.host is not set: give the name that clients are told, such as broker-{ordinal}.example.com, or external.hosts" -}}
{{- end -}}
{{- if and $external.hosts (lt (len $external.hosts) $brokers) -}}
{{- fail (printf "external.hosts has %d entries for %d brokers" (len $external.hosts) $brokers) -}}
{{- end -}}
{{- $ports := $external.nodePorts.brokers -}}
{{- if and (eq $external.type "NodePort") $ports (lt (len $ports) $brokers) -}}
{{- fail (printf "external.nodePorts.brokers has %d entries for %d brokers" (len $ports) $brokers) -}}
{{- end -}}
{{- if and (eq $external.type "LoadBalancer") (not $external.sourceRanges) -}}
{{- fail "external.sourceRanges is not set: there is no authentication, so say which networks may connect (0.0.0.0/0 if all may)" -}}
{{- end -}}
{{- if and (eq $external.type "NodePort") $external.sourceRanges (not (and .Values.networkPolicy.enabled (eq $external.trafficPolicy "Local"))) -}}
{{- fail "external.sourceRanges would hold nobody off: node ports have no such filter. networkPolicy.enabled=true with external.trafficPolicy=Local has one; or unset it, and guard the nodes by a firewall" -}}
{{- end -}}
{{- range $other := list "kafka" "http" -}}
{{- if eq (int $.Values.ports.external) (int (get $.Values.ports $other)) -}}
{{- fail (printf "ports.external and ports.%s are the same" $other) -}}
{{- end -}}
{{- end -}}
{{- $addresses := dict -}}
{{- $nodePorts := dict -}}
{{- if eq $external.type "NodePort" -}}
{{- $_ := set $nodePorts (toString (int $external.nodePorts.bootstrap)) "bootstrap" -}}
{{- end -}}
{{- range (include "alluvium.externals" . | fromJson).brokers -}}
{{- $name := printf "broker %d" (int .ordinal) -}}
{{- $nodePort := toString (int .nodePort) -}}
{{- if and (ne $nodePort "0") (hasKey $nodePorts $nodePort) -}}
{{- fail (printf "external.nodePorts: %s and %s would both have node port %s" (get $nodePorts $nodePort) $name $nodePort) -}}
{{- end -}}
{{- $_ := set $nodePorts $nodePort $name -}}
{{- if gt (int .nodePort) 65535 -}}
{{- fail (printf "external.nodePorts: %s would have node port %s" $name $nodePort) -}}
{{- end -}}
{{- $address := printf "%s:%d" .host (int .port) -}}
{{- if hasKey $addresses $address -}}
{{- fail (printf "external: %s and %s would both be told to clients as %s: put {ordinal} into external.host, or use external.hosts" (get $addresses $address) $name $address) -}}
{{- end -}}
{{- $_ := set $addresses $address $name -}}
{{- end -}}
{{- end -}}
