{{- define "keyhaul.name" -}}
{{- printf "%s-keyhaul" .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "keyhaul.selector" -}}
app.kubernetes.io/name: keyhaul
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "keyhaul.labels" -}}
{{ include "keyhaul.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}
