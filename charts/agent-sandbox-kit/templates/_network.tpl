{{/* SPDX-License-Identifier: Apache-2.0 */}}
{{/* The only ways into and out of a sandbox: by pods and their ports, for an address of a Service is
not matched after it was translated. No DNS. */}}

{{- define "kit.sandboxIngress" -}}
- from:
    - namespaceSelector:
        matchLabels: {kubernetes.io/metadata.name: {{ .Release.Namespace }}}
      podSelector:
        matchLabels:
          {{- include "kit.selector" (dict "root" . "part" "orchestrator") | nindent 10 }}
  ports: [{port: 49983, protocol: TCP}, {port: 49984, protocol: TCP}]
{{- end -}}

{{- define "kit.sandboxEgress" -}}
- to:
    - namespaceSelector:
        matchLabels: {kubernetes.io/metadata.name: {{ .Release.Namespace }}}
      podSelector:
        matchLabels:
          {{- include "kit.selector" (dict "root" . "part" "gateway") | nindent 10 }}
  ports: [{port: 8081, protocol: TCP}]
{{- end -}}

{{- define "kit.dns" -}}
- to:
    - namespaceSelector:
        matchLabels: {kubernetes.io/metadata.name: kube-system}
    # Where a cache of names runs on each node.
    - ipBlock: {cidr: 169.254.20.10/32}
  ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
{{- end -}}
