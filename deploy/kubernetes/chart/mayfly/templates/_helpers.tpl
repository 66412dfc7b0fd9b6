{{- define "mayfly.labels" -}}
app.kubernetes.io/name: mayfly
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: agent
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}
{{- define "mayfly.selector" -}}
app.kubernetes.io/name: mayfly
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "mayfly.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}
{{- /*
The agent's own user: not 65532, which many images use, so that no workload is the agent's equal (threats F09).
*/ -}}
{{- define "mayfly.uid" -}}
{{ ternary 0 64917 (eq .Values.security.level "host") }}
{{- end }}
{{- define "mayfly.config" -}}
# Written by the chart; `mayfly config check` says what is wrong with it.
trust_domain = {{ .Values.trustDomain | quote }}
data_dir = "/var/lib/mayfly"
entries_dir = "/etc/mayfly/entries"
entries_projected = true

[sockets]
public = "/run/mayfly/public/api.sock"
admin = "/run/mayfly/admin/admin.sock"
aliases = {{ .Values.socket.aliases | toJson }}
{{- with .Values.authority.passphraseSecret }}

[authority]
passphrase_file = "/etc/mayfly/passphrase"
{{- end }}

[health]
listen = "0.0.0.0:{{ .Values.health.port }}"
{{- if .Values.metrics.enabled }}

[metrics]
listen = "0.0.0.0:{{ .Values.metrics.port }}"
{{- end }}

[log]
format = "json"
{{- if eq .Values.podSource "kubelet" }}

[attest.kubernetes]
enabled = "on"
source = "kubelet"
kubelet_socket = "/var/lib/kubelet/pods-api/pods-api.sock"
{{- end }}
{{- with .Values.config }}

{{ . }}
{{- end }}
{{- end }}
