{{- define "weft.serviceAccount" -}}
{{- .Values.serviceAccount.name | default .Release.Name -}}
{{- end -}}

{{- define "weft.uninstallAccount" -}}
{{- printf "%s-uninstall" (include "weft.serviceAccount" .) -}}
{{- end -}}

{{- define "weft.selector" -}}
app.kubernetes.io/name: weft-agent
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "weft.labels" -}}
{{ include "weft.selector" . }}
app.kubernetes.io/part-of: weft
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "weft.authority" -}}
{{- printf "%s-ca" .Release.Name -}}
{{- end -}}

{{- define "weft.authorityAccount" -}}
{{- printf "%s-ca" (include "weft.serviceAccount" .) -}}
{{- end -}}

{{- define "weft.authoritySelector" -}}
app.kubernetes.io/name: weft-ca
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "weft.authorityLabels" -}}
{{ include "weft.authoritySelector" . }}
app.kubernetes.io/part-of: weft
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}
