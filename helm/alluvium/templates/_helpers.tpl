{{/* Names and labels. */}}
{{- define "alluvium.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 40 characters, so that names made of it stay below 63. */}}
{{- define "alluvium.fullname" -}}
{{- $name := include "alluvium.name" . -}}
{{- $full := printf "%s-%s" .Release.Name $name -}}
{{- if contains $name .Release.Name -}}
{{- $full = .Release.Name -}}
{{- end -}}
{{- default $full .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "alluvium.selector" -}}
app.kubernetes.io/name: {{ include "alluvium.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels of every object, without the component. */}}
{{- define "alluvium.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{ include "alluvium.selector" . }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "alluvium.brokerSelector" -}}
{{ include "alluvium.selector" . }}
app.kubernetes.io/component: broker
{{- end -}}

{{/* Of pods: without what changes with every version of the chart, for a changed label restarts brokers. */}}
{{- define "alluvium.podLabels" -}}
{{ include "alluvium.brokerSelector" . }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- with .Values.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The headless service, below which every broker has a name of its own. */}}
{{- define "alluvium.brokersService" -}}
{{ include "alluvium.fullname" . }}-brokers
{{- end -}}

{{- define "alluvium.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "alluvium.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "alluvium.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- define "alluvium.bootstrap" -}}
{{ include "alluvium.fullname" . }}.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}:{{ .Values.ports.kafka }}
{{- end -}}

{{/* Where a broker is reached inside the cluster, given the name of its pod. */}}
{{- define "alluvium.internalListener" -}}
PLAINTEXT://{{ .pod }}.{{ include "alluvium.brokersService" .root }}.{{ .root.Release.Namespace }}.svc.{{ .root.Values.clusterDomain }}:{{ .root.Values.ports.kafka }}
{{- end -}}

{{/* The store. */}}
{{- define "alluvium.bucket" -}}
{{- if .Values.minio.enabled -}}
{{- default "alluvium" .Values.bucket.name -}}
{{- else -}}
{{- .Values.bucket.name -}}
{{- end -}}
{{- end -}}

{{- define "alluvium.storeUrl" -}}
s3://{{ include "alluvium.bucket" . }}{{ with .Values.bucket.prefix }}/{{ . }}{{ end }}
{{- end -}}

{{/* The job in Prometheus: one for each cluster, which several releases may share. */}}
{{- define "alluvium.job" -}}
{{- $place := include "alluvium.storeUrl" . | trimPrefix "s3://" -}}
{{- if .Values.minio.enabled -}}
{{- $place = printf "%s/%s" (include "alluvium.minio" .) $place -}}
{{- end -}}
alluvium/{{ regexReplaceAll "[^A-Za-z0-9._/-]" $place "-" }}
{{- end -}}

{{- define "alluvium.minio" -}}
{{ include "alluvium.fullname" . }}-minio
{{- end -}}

{{- define "alluvium.endpoint" -}}
{{- if .Values.minio.enabled -}}
http://{{ include "alluvium.minio" . }}.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}:9000
{{- else -}}
{{- .Values.bucket.endpoint -}}
{{- end -}}
{{- end -}}

{{/* A value of a setting as the file has it. Helm reads whole numbers as floats and would print large ones as 1e+06. */}}
{{- define "alluvium.setting" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}
{{- printf "%.0f" . -}}
{{- else -}}
{{- toString . | replace "\\" "\\\\" -}}
{{- end -}}
{{- end -}}

{{- define "alluvium.bind" -}}
{{- if contains ":" .Values.listenAddress -}}[{{ .Values.listenAddress }}]{{- else -}}{{ .Values.listenAddress }}{{- end -}}
{{- end -}}

{{/* The settings that all brokers share. The first listener is that through which brokers ask for each other. */}}
{{- define "alluvium.settings" -}}
{{- $bind := include "alluvium.bind" . -}}
store.url={{ include "alluvium.storeUrl" . }}
listeners=PLAINTEXT://{{ $bind }}:{{ .Values.ports.kafka }}{{ if .Values.external.enabled }},EXTERNAL://{{ $bind }}:{{ .Values.ports.external }}{{ end }}
{{- if .Values.external.enabled }}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,EXTERNAL:PLAINTEXT
{{- end }}
http.listen={{ $bind }}:{{ .Values.ports.http }}
{{- if eq .Values.rack.from "value" }}
broker.rack={{ .Values.rack.value }}
{{- end }}
{{- range $key, $value := .Values.config }}
{{ $key }}={{ include "alluvium.setting" $value }}
{{- end }}
{{- end -}}

{{/*
How many brokers the StatefulSet asks for. With autoscaling so many as there are: a field that Helm has set and then leaves
out is one broker, not what the autoscaler wants. Where there are none, or no cluster is asked, what it would want at least.
*/}}
{{- define "alluvium.replicas" -}}
{{- $scaling := .Values.autoscaling -}}
{{- if $scaling.enabled -}}
{{- $before := lookup "apps/v1" "StatefulSet" .Release.Namespace (include "alluvium.fullname" .) -}}
{{- $now := dig "spec" "replicas" 0 $before | int -}}
{{- default (max (int .Values.replicas) (int $scaling.minReplicas) | min (int $scaling.maxReplicas)) $now -}}
{{- else -}}
{{- int .Values.replicas -}}
{{- end -}}
{{- end -}}

{{/* Brokers that there may be: so many have a name outside. */}}
{{- define "alluvium.brokers" -}}
{{- ternary .Values.autoscaling.maxReplicas .Values.replicas .Values.autoscaling.enabled | int | add (int .Values.external.reserve) -}}
{{- end -}}

{{/* Host, port and node port of every broker seen from outside, as JSON. */}}
{{- define "alluvium.externals" -}}
{{- $external := .Values.external -}}
{{- $first := int .Values.firstNodeId -}}
{{- $all := list -}}
{{- range $index := until (int (include "alluvium.brokers" .)) -}}
{{- $ordinal := add $first $index -}}
{{- $host := $external.host | replace "{ordinal}" (toString $ordinal) -}}
{{- if $external.hosts -}}
{{- $host = index $external.hosts $index -}}
{{- end -}}
{{- $port := int $external.port -}}
{{- $nodePort := 0 -}}
{{- if eq $external.type "NodePort" -}}
{{- $nodePort = add (int $external.nodePorts.first) $index -}}
{{- if $external.nodePorts.brokers -}}
{{- $nodePort = int (index $external.nodePorts.brokers $index) -}}
{{- end -}}
{{- $port = $nodePort -}}
{{- end -}}
{{- $all = append $all (dict "ordinal" $ordinal "host" $host "port" $port "nodePort" $nodePort) -}}
{{- end -}}
{{- dict "brokers" $all | toJson -}}
{{- end -}}

{{/* A host in a URL. */}}
{{- define "alluvium.urlHost" -}}
{{- if contains ":" . -}}[{{ . }}]{{- else -}}{{ . }}{{- end -}}
{{- end -}}

{{/* Variables of everything that opens the bucket. */}}
{{- define "alluvium.storeEnv" -}}
{{- with .Values.bucket.region }}
- name: AWS_REGION
  value: {{ . | quote }}
{{- end }}
{{- with include "alluvium.endpoint" . }}
- name: AWS_ENDPOINT_URL
  value: {{ . | quote }}
{{- if hasPrefix "http://" . }}
- name: AWS_ALLOW_HTTP
  value: "true"
{{- end }}
{{- end }}
{{- if .Values.bucket.virtualHostedStyle }}
- name: AWS_VIRTUAL_HOSTED_STYLE_REQUEST
  value: "true"
{{- end }}
{{- if .Values.minio.enabled }}
- name: AWS_ACCESS_KEY_ID
  valueFrom:
    secretKeyRef:
      name: {{ include "alluvium.minio" . }}
      key: rootUser
- name: AWS_SECRET_ACCESS_KEY
  valueFrom:
    secretKeyRef:
      name: {{ include "alluvium.minio" . }}
      key: rootPassword
{{- else if .Values.bucket.existingSecret }}
- name: AWS_ACCESS_KEY_ID
  valueFrom:
    secretKeyRef:
      name: {{ .Values.bucket.existingSecret }}
      key: {{ .Values.bucket.secretKeys.accessKeyId }}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom:
    secretKeyRef:
      name: {{ .Values.bucket.existingSecret }}
      key: {{ .Values.bucket.secretKeys.secretAccessKey }}
{{- end }}
{{- end -}}
