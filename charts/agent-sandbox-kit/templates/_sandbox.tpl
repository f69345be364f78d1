{{/* SPDX-License-Identifier: Apache-2.0 */}}
{{/* A sandbox's pod. It passes the Pod Security level `restricted`, whatever its image is.
(dict "root" $ "wanted" a value of sandbox.templates) */}}
{{- define "kit.sandboxPod" -}}
runtimeClassName: {{ .root.Values.sandbox.runtimeClass.name }}
automountServiceAccountToken: false
enableServiceLinks: false
shareProcessNamespace: false
restartPolicy: Never
terminationGracePeriodSeconds: 30
# There is none to ask; the gateway's address comes with the identity.
dnsPolicy: None
dnsConfig: {nameservers: [127.0.0.1]}
{{- with .root.Values.sandbox.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.sandbox.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 1000
  runAsGroup: 1000
  fsGroup: 1000
  seccompProfile: {type: RuntimeDefault}
initContainers:
  - name: install
    image: {{ include "kit.image" (dict "root" .root "image" .root.Values.sandbox.image) }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    args: [install, /postern]
    securityContext:
      {{- include "kit.containerSecurity" .root | nindent 6 }}
    resources:
      requests: {cpu: 10m, memory: 16Mi}
      limits: {cpu: 500m, memory: 64Mi}
    volumeMounts:
      - {name: postern, mountPath: /postern}
containers:
  - name: sandbox
    image: {{ .wanted.image }}
    imagePullPolicy: {{ default "IfNotPresent" .wanted.imagePullPolicy }}
    command: [/postern/postern-sandboxd]
    args: [--listen, "0.0.0.0:49983", --pod, $(POD_UID), --control-key, $(CONTROL_KEY)]
    env:
      - {name: POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
      - {name: CONTROL_KEY, valueFrom: {configMapKeyRef: {name: {{ include "kit.fullname" .root }}-control-key, key: public}}}
      {{- with .wanted.env }}
      {{- range $name, $value := . }}
      - {name: {{ $name }}, value: {{ $value | toString | quote }}}
      {{- end }}
      {{- end }}
    ports:
      - {name: sandboxd, containerPort: 49983}
    securityContext:
      {{- include "kit.containerSecurity" .root | nindent 6 }}
    resources:
      requests: {cpu: {{ .wanted.cpu | quote }}, memory: {{ .wanted.memory }}, ephemeral-storage: {{ .wanted.disk }}}
      limits: {cpu: {{ .wanted.cpu | quote }}, memory: {{ .wanted.memory }}, ephemeral-storage: {{ .wanted.disk }}}
    volumeMounts:
      - {name: postern, mountPath: /postern, readOnly: true}
      # A part of the volume: what sync remembers lies beside it, out of the agent's sight.
      - {name: data, mountPath: /data, subPath: data}
      - {name: home, mountPath: /home/user}
      - {name: tmp, mountPath: /tmp}
  # Carries the user's files. No native sidecar: when the sandbox has ended it is still there to flush.
  - name: sync
    image: {{ include "kit.image" (dict "root" .root "image" .root.Values.sandbox.image) }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    args: [sync, /slot, --listen, "0.0.0.0:49984", --pod, $(POD_UID), --control-key, $(CONTROL_KEY)]
    env:
      - {name: POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
      - {name: CONTROL_KEY, valueFrom: {configMapKeyRef: {name: {{ include "kit.fullname" .root }}-control-key, key: public}}}
    ports:
      - {name: sync, containerPort: 49984}
    securityContext:
      {{- include "kit.containerSecurity" .root | nindent 6 }}
    # A list of 200,000 files fits into the memory.
    resources:
      requests: {cpu: 10m, memory: 32Mi, ephemeral-storage: 16Mi}
      limits: {cpu: "1", memory: 256Mi, ephemeral-storage: 64Mi}
    volumeMounts:
      - {name: data, mountPath: /slot}
volumes:
  - name: postern
    emptyDir: {sizeLimit: 32Mi}
  - name: data
    emptyDir: {sizeLimit: {{ .wanted.disk }}}
  - name: home
    emptyDir: {sizeLimit: {{ .wanted.disk }}}
  - name: tmp
    emptyDir: {sizeLimit: {{ .wanted.disk }}}
{{- end -}}
