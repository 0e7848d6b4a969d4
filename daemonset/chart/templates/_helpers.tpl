{{- define "hearth.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "hearth.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains (include "hearth.name" .) .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "hearth.name" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "hearth.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "hearth.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "hearth.selector" -}}
app.kubernetes.io/name: {{ include "hearth.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "hearth.labels" -}}
{{ include "hearth.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "hearth.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* Where reservations live. */}}
{{- define "hearth.reservations" -}}
{{- default .Release.Namespace .Values.kubernetes.reservation.namespace -}}
{{- end -}}

{{- define "hearth.hostNetwork" -}}
{{- if or .Values.hostNetwork .Values.network.enabled -}}true{{- end -}}
{{- end -}}

{{/* What the chart says to hearthd, with .Values.config on top. */}}
{{- define "hearth.config" -}}
{{- $config := dict
  "data_dir" .Values.paths.data
  "run_dir" .Values.paths.run
  "api" (dict "socket" (printf "%s/hearth.sock" .Values.paths.run) "roles" .Values.api.roles)
  "admin" (dict "metrics_listen" (printf "0.0.0.0:%d" (int .Values.metrics.port)))
  "containerd" (dict "socket" .Values.containerd.socket "snapshotter" .Values.containerd.snapshotter)
  "runtime" (dict "install_dir" .Values.paths.install "shim" "io.containerd.runc.v2" "cgroup_parent" .Values.runtime.cgroupParent)
  "log" (dict "format" "json")
-}}
{{- if not .Values.runtime.installRunsc -}}
{{- $_ := set $config.runtime "runsc" .Values.runtime.runscPath -}}
{{- end -}}
{{- if .Values.network.enabled -}}
{{- $_ := set $config "network" (dict "enabled" true) -}}
{{- end -}}
{{- if .Values.runtime.kata -}}
{{- $_ := set $config.runtime "kata" .Values.runtime.kata -}}
{{- end -}}
{{- if .Values.api.tcp.enabled -}}
{{- $_ := set $config.api "tcp" (printf "0.0.0.0:%d" (int .Values.api.tcp.port)) -}}
{{- $_ := set $config.api "tls" (dict
  "certificate" "/etc/hearth-tls/tls.crt" "key" "/etc/hearth-tls/tls.key" "client_ca" "/etc/hearth-tls/ca.crt"
  "client_certificate" (ternary "optional" .Values.api.tcp.clientCertificate .Values.kubernetes.tokens.enabled)) -}}
{{- end -}}
{{- if .Values.kubernetes.enabled -}}
{{- $_ := set $config "kubernetes" (dict
  "enabled" true "warm_pools" .Values.kubernetes.warmPools "admission" .Values.kubernetes.admission
  "tenant_namespace" .Values.kubernetes.tenantNamespace) -}}
{{- $reservation := .Values.kubernetes.reservation -}}
{{- if ne $reservation.mode "none" -}}
{{- $secrets := list -}}
{{- range .Values.imagePullSecrets }}{{ $secrets = append $secrets .name }}{{ end -}}
{{- $_ := set $config.kubernetes "reservation" (dict
  "mode" $reservation.mode "namespace" (include "hearth.reservations" .) "image" (include "hearth.image" .)
  "pull_secrets" $secrets "priority_class" $reservation.priorityClassName) -}}
{{- end -}}
{{- if .Values.kubernetes.tokens.enabled -}}
{{- $_ := set $config.kubernetes "tokens" (dict "enabled" true "audiences" .Values.kubernetes.tokens.audiences) -}}
{{- end -}}
{{- end -}}
{{- include "hearth.toml" (dict "at" "" "of" (mustMergeOverwrite $config (deepCopy .Values.config))) -}}
{{- end -}}

{{/* A dict as TOML: its values first, then its tables. Helm's own toToml writes whole numbers as 5.0. */}}
{{- define "hearth.toml" -}}
{{- $at := .at -}}
{{- range $key, $value := .of }}
{{- if not (kindIs "map" $value) }}
{{ $key }} = {{ if kindIs "float64" $value }}{{ int64 $value }}{{ else }}{{ toRawJson $value }}{{ end }}
{{- end }}
{{- end }}
{{- range $key, $value := .of }}
{{- if kindIs "map" $value }}
{{- $name := ternary $key (printf "%s.%s" $at $key) (eq $at "") }}

[{{ $name }}]
{{- include "hearth.toml" (dict "at" $name "of" $value) }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Who takes hearth off a node: unmounts below paths.run, and removes its cgroup parent and sandboxes' network. */}}
{{- define "hearth.uninstaller" -}}
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
  add: {{ concat (list "DAC_OVERRIDE" "SYS_ADMIN" "SYS_CHROOT" "SYS_PTRACE") (ternary (list "NET_ADMIN") list .Values.network.enabled) | toJson }}
{{- end -}}

{{- define "hearth.mounts" -}}
- name: config
  mountPath: /etc/hearth
  readOnly: true
{{- if .Values.api.tcp.enabled }}
- name: tls
  mountPath: /etc/hearth-tls
  readOnly: true
{{- end }}
{{- if .Values.runtime.kata }}
# What Kata leaves of dead sandboxes is swept.
- name: run-vc
  mountPath: /run/vc
- name: run-kata
  mountPath: /run/kata
- name: run-kata-containers
  mountPath: /run/kata-containers
{{- end }}
# On the same paths as on the node: containerd's shim opens and mounts what hearthd names.
- name: data
  mountPath: {{ .Values.paths.data }}
- name: run
  mountPath: {{ .Values.paths.run }}
- name: install
  mountPath: {{ .Values.paths.install }}
{{- if not .Values.runtime.installRunsc }}
- name: runsc
  mountPath: {{ dir .Values.runtime.runscPath }}
  readOnly: true
{{- end }}
# A directory, not the socket: a restarted containerd makes a new one.
- name: containerd
  mountPath: {{ dir .Values.containerd.socket }}
  readOnly: true
# To freeze, thaw, reclaim and end sandboxes.
- name: cgroup
  mountPath: /sys/fs/cgroup
{{- end -}}
