{{- define "imagegate.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/*
The name of all objects. At most 52 characters, because with "-cleanup" it is the name of a Job, and so the value of a label.
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
Labels of an object. Call with (dict "root" $ "component" "operator"); leave out the component if the object has none.
*/}}
{{- define "imagegate.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{ include "imagegate.podLabels" . }}
{{- end }}

{{/*
The same labels without those that change at every upgrade.
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
Labels that select the pods of one component. They include the component, because neither the Service nor the
PodDisruptionBudget may select puller pods or the pod of the cleanup job, which may be in the same namespace.
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
The default images of the puller have a digest, because a registry can move a tag. Another repository or tag has none, because
a copy of an image may have another digest. docs/security.md says where the digests are recorded.
*/}}
{{- define "imagegate.image" -}}
{{- if .image.digest }}
{{- printf "%s@%s" .image.repository .image.digest }}
{{- else }}
{{- $reference := printf "%s:%s" .image.repository (.image.tag | default .tag | required "puller.image and puller.container.image need a tag or a digest") }}
{{- $digests := dict
  "registry.k8s.io/pause:3.10.2" "sha256:f548e0e8e3dc1896ca956272154dde3314e8cc4fde0a57577ee9fa1c63f5baf4"
  "docker.io/library/busybox:1.37.0-musl" "sha256:fc6dddc4c44b1bfe37f41cae8e67d1693828e8f42a91862816d7953e2c9d3f23" }}
{{- $reference }}{{ with get $digests $reference }}@{{ . }}{{ end }}
{{- end }}
{{- end }}

{{/*
The namespace that the chart creates for puller pods.
*/}}
{{- define "imagegate.ownPullerNamespace" -}}
imagegate-pullers
{{- end }}

{{/*
The namespaces of the puller pods, the default first. An earlier version put them into the release's own namespace. Such a
release keeps this namespace, because its pull secrets and finished pods are there. The Role of the previous release shows it.
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
Whether the API server serves ValidatingAdmissionPolicy; empty: it does not. All supported versions serve it, unless it is
switched off. Without a cluster (helm template), where not even Pods are known, the chart assumes that it is served.
*/}}
{{- define "imagegate.fenceServed" -}}
{{- if or (.Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy") (not (.Capabilities.APIVersions.Has "v1/Pod")) }}
{{- print "yes" }}
{{- end }}
{{- end }}

{{/*
The keys of the gate's taints, as a JSON list: the keys in the values, in the NodeGate, and in the previous release, because
nodes may still be held with these keys. Without a cluster (helm template) only the keys in the values are known.
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
The API version in which the API server serves MutatingAdmissionPolicy; empty if it does not.
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
The part of the pod spec that the operator, the cleanup job, the watchdog and the push hooks share.
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
Image, environment and security context of the container `imagegate`, for the operator, the cleanup job and the watchdog.
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
  # Variables instead of arguments, so that they also apply to `kubectl exec ... imagegate plan`.
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
Annotations of objects that exist only during `helm uninstall`. Call with the weight: Helm creates hooks in that order.
A failed hook is kept for its logs; the next attempt replaces it.
*/}}
{{- define "imagegate.cleanupHook" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{/*
Rules for reading the images of workloads. RBAC cannot restrict them to the pod templates.
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
The same for resources (PLURAL.GROUP) of other kinds. The argument is a list of their names.
*/}}
{{- define "imagegate.imagesFromResourceRules" -}}
{{- range $name := . | uniq | sortAlpha }}
- apiGroups: [{{ regexReplaceAll "^[^.]*[.]" $name "" }}]
  resources: [{{ regexFind "^[^.]*" $name }}]
  verbs: [list, watch]
{{- end }}
{{- end }}

{{/*
prefetchPolicy and other limits for ImagePrefetches, as JSON for the operator. Every value has a default, because after an
upgrade with --reuse-values from an older chart these values are absent.
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
