{{/* What the operator may do where it looks after EmbeddingCaches: tests compare it with what it makes. */}}
{{- define "embedkeep.rules" -}}
- apiGroups: [embedkeep.dev]
  resources: [embeddingcaches]
  verbs: [get, list, watch]
- apiGroups: [embedkeep.dev]
  resources: [embeddingcaches/status]
  verbs: [get, patch]
# Where the API server checks whose owner references block a deletion, as OpenShift's does.
- apiGroups: [embedkeep.dev]
  resources: [embeddingcaches/finalizers]
  verbs: [update]
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
  verbs: [create, get, patch]
# Pods are looked at, and deleted one by one where a StatefulSet's template is new (OnDelete).
- apiGroups: [""]
  resources: [pods]
  verbs: [delete, get, list, watch]
- apiGroups: ["", events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- if .Values.rbac.monitoring }}
- apiGroups: [monitoring.coreos.com]
  resources: [prometheusrules, servicemonitors]
  verbs: [create, delete, get, patch]
{{- end }}
{{- if .Values.rbac.certificates }}
- apiGroups: [cert-manager.io]
  resources: [certificates]
  verbs: [create, delete, get, patch]
{{- end }}
{{- end -}}
