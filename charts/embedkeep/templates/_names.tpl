{{/* Name of what this release makes in its namespace. */}}
{{- define "embedkeep.name" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Name of what it makes elsewhere: two releases of one name in two namespaces must not meet. */}}
{{- define "embedkeep.clusterName" -}}
{{- printf "%s:%s" (include "embedkeep.name" .) .Release.Namespace -}}
{{- end -}}

{{- define "embedkeep.selector" -}}
app.kubernetes.io/name: embedkeep-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "embedkeep.labels" -}}
{{ include "embedkeep.selector" . }}
app.kubernetes.io/part-of: embedkeep
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "embedkeep.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "embedkeep.name" .) -}}
{{- else -}}
{{- required "serviceAccount.name: needed where serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "embedkeep.image" -}}
{{- with .Values.image -}}
{{- $tagged := printf "%s:%s" .repository (.tag | default $.Chart.AppVersion) -}}
{{- if .digest }}{{ printf "%s@%s" $tagged .digest }}{{ else }}{{ $tagged }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* What every container of this chart may not do: Kubernetes' restricted profile, and no writes. */}}
{{- define "embedkeep.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}
