{{/* What the operator may do where it looks after EmbeddingCaches: tests compare it with what it makes. */}}
{{- define "embedkeep.rules" -}}
- apiGroups: [embedkeep.dev]
  resources: [embeddingcaches]
  verbs: [get, list, watch]
- apiGroups: [embedkeep.dev]
  resources: [embeddingcaches/status]
  verbs: [patch]
# What it makes, mends and takes away.
- apiGroups: [""]
  resources: [configmaps, serviceaccounts, services]
  verbs: [create, delete, get, list, patch, watch]
- apiGroups: [apps]
  resources: [deployments, statefulsets]
  verbs: [create, delete, get, list, patch, watch]
- apiGroups: [batch]
  resources: [cronjobs]
  verbs: [create, delete, get, list, patch, watch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [create, delete, get, list, patch, watch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [create, delete, get, list, patch, watch]
# Made once, never listed or watched: names differ by EmbeddingCache, so RBAC cannot name them.
- apiGroups: [""]
  resources: [secrets]
  verbs: [create, get]
# Pods are looked at, and deleted one by one where a StatefulSet's template is new (OnDelete).
- apiGroups: [""]
  resources: [pods]
  verbs: [delete, get, list, watch]
# What has befallen pods and workloads is read; what the operator has to say is written.
- apiGroups: [""]
  resources: [events]
  verbs: [list]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- if .Values.rbac.monitoring }}
- apiGroups: [monitoring.coreos.com]
  resources: [prometheusrules, servicemonitors]
  verbs: [create, delete, get, list, patch, watch]
{{- end }}
{{- if .Values.rbac.certificates }}
- apiGroups: [cert-manager.io]
  resources: [certificates]
  verbs: [create, delete, get, list, patch, watch]
{{- end }}
{{- end -}}
