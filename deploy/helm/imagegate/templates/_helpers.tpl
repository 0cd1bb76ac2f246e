{{- define "imagegate.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/*
The name of all objects. 52 characters at most: with "-cleanup" it is also the name of a Job, and so a label's value.
*/}}
{{- define "imagegate.fullname" -}}
{{- $name := include "imagegate.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/*
Labels of an object. Call with (dict "root" $ "component" "operator"); the component is left out where it says nothing.
*/}}
{{- define "imagegate.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{ include "imagegate.podLabels" . }}
{{- end }}

{{/*
The same without what changes at every upgrade.
*/}}
{{- define "imagegate.podLabels" -}}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: {{ .root.Chart.Name }}
{{- if .component }}
{{ include "imagegate.selectorLabels" . }}
{{- else }}
app.kubernetes.io/name: {{ include "imagegate.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/*
What selects the pods of one component. The component belongs to it: puller pods and the cleanup job live in the same
namespace, and neither the Service nor the PodDisruptionBudget may count them.
*/}}
{{- define "imagegate.selectorLabels" -}}
app.kubernetes.io/name: {{ include "imagegate.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "imagegate.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "imagegate.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/*
An image reference. Call with (dict "image" .Values.image "tag" .Chart.AppVersion).
*/}}
{{- define "imagegate.image" -}}
{{- if .image.digest }}
{{- printf "%s@%s" .image.repository .image.digest }}
{{- else }}
{{- printf "%s:%s" .image.repository (.image.tag | default .tag | required "puller.image and puller.container.image need a tag or a digest") }}
{{- end }}
{{- end }}

{{/*
The namespace that the chart creates for puller pods.
*/}}
{{- define "imagegate.ownPullerNamespace" -}}
imagegate-pullers
{{- end }}

{{/*
Where puller pods run, the default first. A release whose puller pods are in its own namespace, as was the default once,
goes on there: its pull secrets and finished pods are there. The Role tells, which the release before has made.
*/}}
{{- define "imagegate.pullerNamespaces" -}}
{{- if .Values.puller.namespaces }}
{{- .Values.puller.namespaces | uniq | join "," }}
{{- else if lookup "rbac.authorization.k8s.io/v1" "Role" .Release.Namespace (printf "%s-puller" (include "imagegate.fullname" .)) }}
{{- .Release.Namespace }}
{{- else }}
{{- include "imagegate.ownPullerNamespace" . }}
{{- end }}
{{- end }}

{{/*
Whether the API server serves ValidatingAdmissionPolicy; empty: it does not. Every version that the chart supports does,
unless somebody has switched it off. Without a cluster (helm template), where not even Pods are known, it is assumed.
*/}}
{{- define "imagegate.fenceServed" -}}
{{- if or (.Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy") (not (.Capabilities.APIVersions.Has "v1/Pod")) }}
{{- print "yes" }}
{{- end }}
{{- end }}

{{/*
The keys of the gate's taints, as a JSON list: the chart's, the NodeGate's, and those that the release had before, because
nodes may still be held under them. Without a cluster (helm template) only those of the values are known.
*/}}
{{- define "imagegate.gateKeys" -}}
{{- $keys := prepend .Values.gate.otherTaintKeys .Values.gate.taintKey }}
{{- with lookup "admissionregistration.k8s.io/v1" "ValidatingAdmissionPolicy" "" (printf "%s-fence-nodes" (include "imagegate.fullname" .)) }}
{{- $keys = concat $keys (splitList "," (get (.metadata.annotations | default dict) "imagegate.dev/taint-keys")) }}
{{- end }}
{{- if .Capabilities.APIVersions.Has "imagegate.dev/v1alpha1/NodeGate" }}
{{- with lookup "imagegate.dev/v1alpha1" "NodeGate" "" "default" }}
{{- $keys = append $keys .spec.taintKey }}
{{- end }}
{{- end }}
{{- $keys | compact | uniq | toJson }}
{{- end }}

{{- define "imagegate.pullerPriorityClassName" -}}
{{- if .Values.puller.priorityClass.create }}
{{- .Values.puller.priorityClass.name | default (printf "%s-puller" (include "imagegate.fullname" .)) }}
{{- else }}
{{- required "puller.priorityClass.name is needed when puller.priorityClass.create is false" .Values.puller.priorityClass.name }}
{{- end }}
{{- end }}

{{/*
The API version in which the API server serves MutatingAdmissionPolicy; empty where it does not.
*/}}
{{- define "imagegate.policyAPIVersion" -}}
{{- if .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy" }}
{{- print "admissionregistration.k8s.io/v1" }}
{{- else if .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1beta1/MutatingAdmissionPolicy" }}
{{- print "admissionregistration.k8s.io/v1beta1" }}
{{- end }}
{{- end }}

{{/*
gate.source with auto resolved: policy, watch or none.
*/}}
{{- define "imagegate.gateSource" -}}
{{- $served := include "imagegate.policyAPIVersion" . }}
{{- if eq .Values.gate.source "auto" }}
{{- ternary "policy" "watch" (ne $served "") }}
{{- else if and (eq .Values.gate.source "policy") (eq $served "") }}
{{- fail (printf "gate.source is policy, but Kubernetes %s serves MutatingAdmissionPolicy neither as admissionregistration.k8s.io/v1 (1.36 and newer) nor as v1beta1 (1.34 and newer, with --feature-gates=MutatingAdmissionPolicy=true --runtime-config=admissionregistration.k8s.io/v1beta1=true). Use gate.source=auto or watch. Rendering without a cluster (helm template)? Add --api-versions=admissionregistration.k8s.io/v1/MutatingAdmissionPolicy." .Capabilities.KubeVersion.Version) }}
{{- else }}
{{- .Values.gate.source }}
{{- end }}
{{- end }}

{{- define "imagegate.policyName" -}}
{{- printf "%s-node-gate" (include "imagegate.fullname" .) }}
{{- end }}

{{/*
What the operator's pods and the cleanup job have in common.
*/}}
{{- define "imagegate.podSpec" -}}
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
Image, environment and security context of the container `imagegate`, in both.
*/}}
{{- define "imagegate.container" -}}
image: {{ include "imagegate.image" (dict "image" .Values.image "tag" .Chart.AppVersion) }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
env:
  - name: POD_NAME
    valueFrom:
      fieldRef:
        fieldPath: metadata.name
  - name: POD_NAMESPACE
    valueFrom:
      fieldRef:
        fieldPath: metadata.namespace
  # Not arguments: `kubectl exec ... imagegate plan` asks the same registries and kubelets.
  - name: IMAGEGATE_PULLER_NAMESPACES
    value: {{ include "imagegate.pullerNamespaces" . | quote }}
  - name: IMAGEGATE_PREFETCH_POLICY
    value: {{ include "imagegate.prefetchPolicy" . | quote }}
  {{- with .Values.registry.plainHTTP }}
  - name: IMAGEGATE_REGISTRY_PLAIN_HTTP
    value: {{ join "," . | quote }}
  {{- end }}
  {{- with .Values.registry.privateHosts }}
  - name: IMAGEGATE_REGISTRY_PRIVATE_HOSTS
    value: {{ join "," . | quote }}
  {{- end }}
  {{- with .Values.registry.tokenServices }}
  - name: IMAGEGATE_REGISTRY_TOKEN_SERVICES
    value: {{ join "," . | quote }}
  {{- end }}
  {{- with .Values.registry.caFile }}
  - name: IMAGEGATE_REGISTRY_CA_FILE
    value: {{ . | quote }}
  {{- end }}
  {{- with .Values.registry.credentialProviders }}
  {{- if ne (empty .configFile) (empty .binDir) }}
  {{- fail "registry.credentialProviders: configFile and binDir go together; set both or neither." }}
  {{- end }}
  {{- if .configFile }}
  - name: IMAGEGATE_REGISTRY_CREDENTIAL_PROVIDER_CONFIG
    value: {{ .configFile | quote }}
  - name: IMAGEGATE_REGISTRY_CREDENTIAL_PROVIDER_BIN_DIR
    value: {{ .binDir | quote }}
  {{- end }}
  {{- end }}
  {{- if .Values.kubelet.readDiskUsage }}
  - name: IMAGEGATE_KUBELET_SERVICE_ACCOUNT
    value: {{ include "imagegate.fullname" . }}-kubelets
  {{- end }}
  {{- with .Values.kubelet.caFile }}
  - name: IMAGEGATE_KUBELET_CA_FILE
    value: {{ . | quote }}
  {{- end }}
  {{- if .Values.kubelet.insecureTLS }}
  - name: IMAGEGATE_KUBELET_INSECURE_TLS
    value: "true"
  {{- end }}
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
Annotations of what exists only during `helm uninstall`. Call with the weight: Helm creates hooks in that order.
A failed hook stays, for its logs; the next try replaces it.
*/}}
{{- define "imagegate.cleanupHook" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{/*
What reading the images of workloads takes. RBAC cannot restrict it to the pod templates.
*/}}
{{- define "imagegate.imagesFromRules" -}}
- apiGroups: [apps]
  resources: [deployments, statefulsets, daemonsets]
  verbs: [list, watch]
- apiGroups: [batch]
  resources: [jobs, cronjobs]
  verbs: [list, watch]
{{- end }}

{{/*
prefetchPolicy, and what else bounds an ImagePrefetch, as the operator reads it (JSON). An upgrade with --reuse-values from a
chart without these values finds none of them.
*/}}
{{- define "imagegate.prefetchPolicy" -}}
{{- $policy := .Values.prefetchPolicy | default dict }}
{{- dict
  "registries" ($policy.registries | default list)
  "pullSecrets" ($policy.pullSecrets | default list)
  "allowFailClosed" (ne (toString $policy.allowFailClosed) "false")
  "maxHoldSeconds" ($policy.maxHoldSeconds | default 0 | int64)
  "maxGigabytesPerNode" ($policy.maxGigabytesPerNode | default 0 | int64)
  "maxDiskUsagePercent" ($policy.maxDiskUsagePercent | default 100 | int64)
  "requireNodeSelector" ($policy.requireNodeSelector | default false)
  "imagesFromPullSecretRegistries" (.Values.imagesFrom.pullSecretRegistries | default list)
  "pullerHasSecrets" (not (empty .Values.puller.imagePullSecrets))
  | toJson }}
{{- end }}
