{{/* SPDX-License-Identifier: Apache-2.0 */}}
{{/*
Settings of the programs. What is secret is never an environment variable's text: it is a file of
one projected volume, /etc/postern/keys, named as the variable, and VARIABLE_FILE names that file.

  given as text ──▶ Secret NAME-given ──┐
  given by reference ──▶ that Secret ───┼──▶ /etc/postern/keys/VARIABLE ◀── VARIABLE_FILE
  made once ──▶ Secret NAME-keys ───────┘
*/}}

{{/* Settings that are secret (common/src/settings.rs; a test holds this list to it). */}}
{{- define "kit.secretSettings" -}}
TOKEN_SIGNING_KEY POSTERN_TOKEN_OLD_KEYS POSTERN_MASTER_KEY POSTERN_SANDBOX_CONTROL_KEY DATABASE_URL POSTERN_OTLP_HEADERS POSTERN_GATEWAY_CREDENTIAL
{{- end -}}

{{/* Those that are made if nobody gives them. */}}
{{- define "kit.madeSettings" -}}
TOKEN_SIGNING_KEY POSTERN_MASTER_KEY POSTERN_SANDBOX_CONTROL_KEY{{ if .Values.database.embedded.enabled }} DATABASE_URL{{ end }}
{{- end -}}

{{/* Which Secret holds it, as JSON {name, key}; nothing if none does. (dict "root" $ "setting" NAME) */}}
{{- define "kit.source" -}}
{{- $root := .root -}}
{{- $reference := get $root.Values.orchestrator.secrets .setting -}}
{{- if get $root.Values.orchestrator.env .setting -}}
{{- dict "name" (printf "%s-given" (include "kit.fullname" $root)) "key" .setting | toJson -}}
{{- else if $reference -}}
{{- dict "name" $reference.name "key" $reference.key | toJson -}}
{{- else if and $root.Values.secrets.generate (has .setting (splitList " " (include "kit.madeSettings" $root))) -}}
{{- dict "name" (printf "%s-keys" (include "kit.fullname" $root)) "key" .setting | toJson -}}
{{- end -}}
{{- end -}}

{{/* What the Job has to make: those that are in no other Secret. */}}
{{- define "kit.toMake" -}}
{{- $root := . -}}
{{- $made := list -}}
{{- range splitList " " (include "kit.madeSettings" .) -}}
{{- $source := include "kit.source" (dict "root" $root "setting" .) -}}
{{- if $source -}}
{{- if eq (fromJson $source).name (printf "%s-keys" (include "kit.fullname" $root)) -}}
{{- $made = append $made . -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- join "," $made -}}
{{- end -}}

{{/* What the orchestrator reads of its secrets. */}}
{{- define "kit.orchestratorSecrets" -}}
TOKEN_SIGNING_KEY POSTERN_TOKEN_OLD_KEYS POSTERN_MASTER_KEY POSTERN_SANDBOX_CONTROL_KEY DATABASE_URL
{{- end -}}

{{/* …_FILE variables: (dict "root" $ "settings" (list …)) */}}
{{- define "kit.secretFiles" -}}
{{- $root := .root -}}
{{- range .settings }}
{{- if include "kit.source" (dict "root" $root "setting" .) }}
- name: {{ . }}_FILE
  value: /etc/postern/keys/{{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The projected volume's sources. */}}
{{- define "kit.secretSources" -}}
{{- $root := .root -}}
{{- range .settings }}
{{- $source := include "kit.source" (dict "root" $root "setting" .) }}
{{- if $source }}
{{- $source = fromJson $source }}
- secret:
    name: {{ $source.name }}
    items: [{key: {{ $source.key }}, path: {{ . }}}]
{{- end }}
{{- end }}
{{- end -}}

{{/* Settings that are no secret, in order. A dict. */}}
{{- define "kit.env" -}}
{{- $secrets := splitList " " (include "kit.secretSettings" .) -}}
{{- range $name, $value := . }}
{{- if not (or (has $name $secrets) (kindIs "invalid" $value) (eq (toString $value) "")) }}
- name: {{ $name }}
  {{- /* Numbers come as floating point, which is written as 1e+06. */}}
  value: {{ ternary ($value | int64) $value (kindIs "float64" $value) | toString | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Pods begin anew when what was given as text changes. So short a sum tells nobody a password. */}}
{{- define "kit.givenSum" -}}
{{- $root := . -}}
{{- $given := dict -}}
{{- range $name := splitList " " (include "kit.secretSettings" .) -}}
{{- with get $root.Values.orchestrator.env $name -}}
{{- $_ := set $given $name . -}}
{{- end -}}
{{- end -}}
{{- $given | toJson | sha256sum | trunc 8 -}}
{{- end -}}

{{/* The claim of the cache's mount; nothing: it is in the data folder. */}}
{{- define "kit.cacheClaim" -}}
{{- with .Values.cache -}}
{{- if .existingClaim -}}
{{- .existingClaim -}}
{{- else if .nfs.server -}}
{{- printf "%s-cache-%s" (include "kit.fullname" $) (printf "%s:%s" .nfs.server .nfs.path | sha256sum | trunc 8) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Where the cache is and what it may hold, as JSON: settings of the orchestrator. */}}
{{- define "kit.cacheSettings" -}}
{{- $isMounted := ne (include "kit.cacheClaim" .) "" -}}
{{- $size := .Values.cache.size | toString -}}
{{- dict
      "NFS_SERVER" (ternary "/mnt/cache" "" $isMounted)
      "POSTERN_FILES_CACHE_SIZE" (ternary (ternary "10GiB" "512MiB" $isMounted) $size (eq $size ""))
      "POSTERN_FILES_CACHE_AGE" .Values.cache.age
    | toJson -}}
{{- end -}}
