package main

import "k8s.io/apimachinery/pkg/runtime/schema"

// resource is a built-in kind that is served. Custom ones come from CustomResourceDefinitions.
type resource struct {
	gv         schema.GroupVersion
	kind       string
	plural     string
	namespaced bool
	// status says whether there is a status subresource.
	status bool
	short  []string
}

func gv(group, version string) schema.GroupVersion {
	return schema.GroupVersion{Group: group, Version: version}
}

var resources = []resource{
	{gv("", "v1"), "ConfigMap", "configmaps", true, false, []string{"cm"}},
	{gv("", "v1"), "Endpoints", "endpoints", true, false, []string{"ep"}},
	{gv("", "v1"), "Event", "events", true, false, []string{"ev"}},
	{gv("", "v1"), "Namespace", "namespaces", false, true, []string{"ns"}},
	{gv("", "v1"), "Node", "nodes", false, true, []string{"no"}},
	{gv("", "v1"), "Pod", "pods", true, true, []string{"po"}},
	{gv("", "v1"), "Secret", "secrets", true, false, nil},
	{gv("", "v1"), "Service", "services", true, true, []string{"svc"}},
	{gv("", "v1"), "ServiceAccount", "serviceaccounts", true, false, []string{"sa"}},
	{gv("apps", "v1"), "DaemonSet", "daemonsets", true, true, []string{"ds"}},
	{gv("apps", "v1"), "Deployment", "deployments", true, true, []string{"deploy"}},
	{gv("apps", "v1"), "ReplicaSet", "replicasets", true, true, []string{"rs"}},
	{gv("apps", "v1"), "StatefulSet", "statefulsets", true, true, []string{"sts"}},
	{gv("batch", "v1"), "Job", "jobs", true, true, nil},
	{gv("certificates.k8s.io", "v1beta1"), "ClusterTrustBundle", "clustertrustbundles", false, false, nil},
	{gv("coordination.k8s.io", "v1"), "Lease", "leases", true, false, nil},
	{gv("discovery.k8s.io", "v1"), "EndpointSlice", "endpointslices", true, false, nil},
	{gv("events.k8s.io", "v1"), "Event", "events", true, false, nil},
	{gv("networking.k8s.io", "v1"), "Ingress", "ingresses", true, true, []string{"ing"}},
	{gv("networking.k8s.io", "v1"), "NetworkPolicy", "networkpolicies", true, false, []string{"netpol"}},
	{gv("policy", "v1"), "PodDisruptionBudget", "poddisruptionbudgets", true, true, []string{"pdb"}},
	{gv("rbac.authorization.k8s.io", "v1"), "ClusterRole", "clusterroles", false, false, nil},
	{gv("rbac.authorization.k8s.io", "v1"), "ClusterRoleBinding", "clusterrolebindings", false, false, nil},
	{gv("rbac.authorization.k8s.io", "v1"), "Role", "roles", true, false, nil},
	{gv("rbac.authorization.k8s.io", "v1"), "RoleBinding", "rolebindings", true, false, nil},
}
