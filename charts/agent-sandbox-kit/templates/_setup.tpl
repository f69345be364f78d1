{{/* SPDX-License-Identifier: Apache-2.0 */}}
{{/*
What happens before the release's own objects are there, in this order:

  -30  what was given as text, and the account of the Jobs; gone when the last Job is done
  -20  keys      makes what nobody gave, never over what is there        ─▶ Secret NAME-keys
  -15  migrate   brings the database up to date
  -10  access    makes the first admin key and the gateways' credential ─▶ Secret NAME-access

Beside them, with the release's own objects, `control-key` tells sandboxes whose orders to believe.
With the embedded database the last two cannot be hooks: it is one of the release's own objects.
*/}}

{{- define "kit.hook" -}}
helm.sh/hook: pre-install,pre-upgrade,pre-rollback
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{/* A Job's name: what runs once belongs to what it runs, for a Job cannot be changed. */}}
{{- define "kit.jobName" -}}
{{- $name := printf "%s-setup-%s" (include "kit.fullname" .root) .job -}}
{{- if .isHook -}}{{ $name }}{{- else -}}
{{- printf "%s-%s" $name (list (include "kit.orchestratorImage" .root) (include "kit.givenSum" .root) .args | toJson | sha256sum | trunc 8) -}}
{{- end -}}
{{- end -}}

{{/* The secrets of a setup Job: those of the release, but what was given is read from the hook's copy. */}}
{{- define "kit.setupSources" -}}
{{- $given := printf "%s-given" (include "kit.fullname" .root) -}}
{{- $isHook := .isHook -}}
{{- range .settings }}
{{- $source := include "kit.source" (dict "root" $.root "setting" .) }}
{{- if $source }}
{{- $source = fromJson $source }}
- secret:
    name: {{ ternary (printf "%s-setup" $given) $source.name (and $isHook (eq $source.name $given)) }}
    items: [{key: {{ $source.key }}, path: {{ . }}}]
{{- end }}
{{- end }}
{{- end -}}

{{/* (dict "root" $ "job" "keys" "weight" -20 "isHook" true "args" (list …) "settings" (list …) "asksApi" true
"account" "other than NAME-setup") */}}
{{- define "kit.setupJob" -}}
---
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ include "kit.jobName" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "kit.labels" (dict "root" .root "part" "setup") | nindent 4 }}
  {{- if .isHook }}
  annotations:
    helm.sh/hook: pre-install,pre-upgrade,pre-rollback
    helm.sh/hook-weight: {{ .weight | quote }}
    # Kept until the next time: its log says what it did.
    helm.sh/hook-delete-policy: before-hook-creation
  {{- end }}
spec:
  backoffLimit: {{ ternary 3 10 .isHook }}
  activeDeadlineSeconds: 600
  template:
    metadata:
      labels:
        {{- include "kit.podLabels" (dict "root" .root "part" "setup") | nindent 8 }}
    spec:
      restartPolicy: Never
      {{- if .asksApi }}
      serviceAccountName: {{ default (printf "%s-setup" (include "kit.fullname" .root)) .account }}
      {{- end }}
      automountServiceAccountToken: {{ .asksApi }}
      enableServiceLinks: false
      {{- with include "kit.pullSecrets" .root }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- with .root.Values.orchestrator.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .root.Values.orchestrator.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        {{- include "kit.podSecurity" .root | nindent 8 }}
      containers:
        - name: {{ .job }}
          image: {{ include "kit.orchestratorImage" .root }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          args: {{ toJson .args }}
          env:
            - {name: POSTERN_DATA_DIR, value: /var/lib/postern}
            {{- include "kit.secretFiles" (dict "root" .root "settings" .settings) | trim | nindent 12 }}
          securityContext:
            {{- include "kit.containerSecurity" .root | nindent 12 }}
          resources:
            requests: {cpu: 50m, memory: 64Mi}
            limits: {memory: 256Mi}
          volumeMounts:
            - {name: data, mountPath: /var/lib/postern}
            {{- if .settings }}
            - {name: keys, mountPath: /etc/postern/keys, readOnly: true}
            {{- end }}
      volumes:
        - name: data
          emptyDir: {medium: Memory, sizeLimit: 16Mi}
        {{- if .settings }}
        - name: keys
          projected:
            defaultMode: 0440
            sources:
              {{- include "kit.setupSources" . | trim | nindent 14 }}
        {{- end }}
{{- end -}}
