//! Values to render and to install the chart with.

/// APIs of the Prometheus operator.
pub(crate) const MONITORING: &[&str] = &[
    "monitoring.coreos.com/v1/ServiceMonitor",
    "monitoring.coreos.com/v1/PodMonitor",
    "monitoring.coreos.com/v1/PrometheusRule",
];

/// Values that an installation may set, each set on its own and rendered.
pub(crate) const COMBINATIONS: &[(&str, &str)] = &[
    ("defaults", "{}"),
    ("one replica", "replicaCount: 1"),
    ("some namespaces", "watch: {namespaces: [team-a, team-b]}"),
    (
        "some namespaces and their secrets",
        "{watch: {namespaces: [team-a]}, rbac: {secrets: [{namespace: team-a, names: [rabbitmq, redis]}]}, crds: {enabled: false}}",
    ),
    ("no rbac", "{rbac: {create: false}, serviceAccount: {create: false, name: mine}}"),
    ("no user roles", "rbac: {aggregateToDefaultRoles: false, secretReader: false}"),
    ("definition not kept", "crds: {keep: false, annotations: {example.com/a: b}}"),
    ("no definition", "crds: {enabled: false}"),
    (
        "image by digest",
        "image: {registry: registry.example.com, digest: 'sha256:0000000000000000000000000000000000000000000000000000000000000000', pullPolicy: Always}",
    ),
    ("names", "{nameOverride: queues, fullnameOverride: task-queues, commonLabels: {team: a}}"),
    (
        "scheduling",
        "{nodeSelector: {pool: system}, tolerations: [{key: system, operator: Exists}], priorityClassName: system-cluster-critical, affinity: {nodeAffinity: {}}, topologySpreadConstraints: [{maxSkew: 1, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: DoNotSchedule}]}",
    ),
    (
        "additions",
        "{extraArgs: [--log=debug], extraEnv: [{name: A, value: b}], extraVolumes: [{name: ca, emptyDir: {}}], extraVolumeMounts: [{name: ca, mountPath: /ca}], podAnnotations: {a: b}, podLabels: {a: b}, deploymentAnnotations: {a: b}, imagePullSecrets: [{name: pull}], hostAliases: [{ip: 10.0.0.1, hostnames: [a]}], dnsPolicy: None, dnsConfig: {nameservers: [10.0.0.10]}, serviceAccount: {annotations: {a: b}}}",
    ),
    (
        "extra objects",
        "extraObjects: [{apiVersion: v1, kind: ConfigMap, metadata: {name: '{{ .Release.Name }}-extra'}}, \"apiVersion: v1\\nkind: ConfigMap\\nmetadata:\\n  name: text\\n\"]",
    ),
    (
        "monitors",
        "metrics: {annotations: false, service: {port: 9090, labels: {a: b}, annotations: {a: b}}, serviceMonitor: {enabled: true, interval: 15s, scrapeTimeout: 5s, labels: {release: prometheus}, annotations: {a: b}, relabelings: [{action: drop}], metricRelabelings: [{action: drop}]}, podMonitor: {enabled: true, interval: 15s, scrapeTimeout: 5s, labels: {release: prometheus}, annotations: {a: b}, relabelings: [{action: drop}], metricRelabelings: [{action: drop}]}}",
    ),
    (
        "alerts and dashboards",
        "metrics: {prometheusRule: {enabled: true, labels: {release: prometheus}, annotations: {a: b}}, dashboards: {enabled: true, labels: {grafana_dashboard: '1'}, annotations: {a: b}}}",
    ),
    (
        "network policies",
        "networkPolicy: {enabled: true, metricsFrom: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: 5671}]}], workerNamespaces: [team-a]}",
    ),
    (
        "network policies for everybody",
        "networkPolicy: {enabled: true, egress: [], workerNamespaces: [team-a]}",
    ),
    ("no scale-in policy", "scaleInProtection: {enabled: false}"),
    (
        "controllers with one name",
        "scaleInProtection: {replicaSetController: 'system:kube-controller-manager'}",
    ),
    ("disruptions", "{replicaCount: 3, podDisruptionBudget: {maxUnavailable: 50%}}"),
];

/// Values that must be refused, and the word by which the refusal names what is wrong.
pub(crate) const REFUSED: &[(&str, &str)] = &[
    ("replicaCounts=2", "replicaCounts"),
    ("image.pullpolicy=Always", "pullpolicy"),
    ("image.pullPolicy=Sometimes", "pullPolicy"),
    ("image.digest=abc", "digest"),
    ("replicaCount=two", "replicaCount"),
    ("replicaCount=-1", "replicaCount"),
    ("watch.namespaces=team-a", "namespaces"),
    ("watch.namespaces={Team_A}", "namespaces"),
    ("crds.keeep=true", "keeep"),
    ("rbac.secrets[0].namespace=team-a", "names"),
    ("log.format=xml", "format"),
    ("metrics.serviceMonitor.enable=true", "enable"),
    ("metrics.service.port=0", "port"),
    ("livenessProbe.httpGet.path=/x", "httpGet"),
    ("resources.limit.memory=1Gi", "limit"),
    ("extraArgs=--log=debug", "extraArgs"),
    ("extraEnv[0].nam=A", "nam"),
    ("metrics.prometheusRule.enable=true", "enable"),
    ("metrics.dashboards.label.a=b", "label"),
    ("networkPolicy.enable=true", "enable"),
    ("networkPolicy.metricsFrom[0].podselector.a=b", "podselector"),
    ("networkPolicy.egress[0].port=5672", "port"),
    ("networkPolicy.workerNamespaces=team-a", "workerNamespaces"),
];
