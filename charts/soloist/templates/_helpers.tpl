{{/* The chart's name, as the label app.kubernetes.io/name has it. */}}
{{- define "soloist.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* The name of the objects: short enough to leave room for a suffix. */}}
{{- define "soloist.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 48 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "soloist.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 48 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 48 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What a selector may hold: nothing that changes between versions. */}}
{{- define "soloist.selectorLabels" -}}
app.kubernetes.io/name: {{ include "soloist.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "soloist.labels" -}}
{{ include "soloist.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: soloist
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "soloist.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "soloist.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* The operator's image; a digest wins over a tag. */}}
{{- define "soloist.image" -}}
{{- with .Values.image -}}
{{- $repository := printf "%s/%s" .registry .repository | trimPrefix "/" -}}
{{- if .digest -}}
{{- printf "%s@%s" $repository .digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (.tag | default $.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The address of the operator inside the cluster. */}}
{{- define "soloist.url" -}}
{{- printf "http://%s.%s.svc:%v" (include "soloist.fullname" .) .Release.Namespace .Values.metrics.service.port -}}
{{- end -}}

{{/* What the operator may do in the namespaces whose TaskQueues it serves: rules of a Role or of a ClusterRole. */}}
{{- define "soloist.rules" -}}
# It patches its own finalizer, of TaskQueues whose queues are to go with them. It never writes a spec.
- apiGroups: [soloist.dev]
  resources: [taskqueues]
  verbs: [get, list, watch, patch]
- apiGroups: [soloist.dev]
  resources: [taskqueues/status]
  verbs: [patch]
# Where OwnerReferencesPermissionEnforcement is on, an owner reference that blocks deletion needs this.
- apiGroups: [soloist.dev]
  resources: [taskqueues/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch]
- apiGroups: [apps]
  resources: [deployments/scale]
  verbs: [patch]
# Which pods a rollout or somebody's scaling has too many of.
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [list, watch]
# The label by which a worker that has drained may be deleted. It patches metadata only.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}
