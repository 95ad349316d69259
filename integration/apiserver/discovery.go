package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	apiextopenapi "k8s.io/apiextensions-apiserver/pkg/generated/openapi"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kube-openapi/pkg/common"
	openapiutil "k8s.io/kube-openapi/pkg/util"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// definitions are the generated ones for types of metadata, and free-form objects for the built-in kinds; so server-side apply
// takes their lists as a whole.
func definitions(ref common.ReferenceCallback) map[string]common.OpenAPIDefinition {
	all := apiextopenapi.GetOpenAPIDefinitions(ref)
	for _, r := range resources {
		for _, kind := range []string{r.kind, r.kind + "List"} {
			object, err := scheme.New(r.gv.WithKind(kind))
			must(err)
			schema := spec.Schema{SchemaProps: spec.SchemaProps{Type: []string{"object"}}}
			schema.Extensions = spec.Extensions{"x-kubernetes-preserve-unknown-fields": true}
			all[openapiutil.GetCanonicalTypeName(object)] = common.OpenAPIDefinition{Schema: schema}
		}
	}
	return all
}

// plainGroups answers GET /apis in its old form from the aggregated document, as kube-aggregator does in a cluster.
func plainGroups(next, aggregated http.Handler) http.Handler {
	const kind = "as=APIGroupDiscoveryList"
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		isGroups := r.Method == http.MethodGet && strings.TrimSuffix(r.URL.Path, "/") == "/apis"
		if !isGroups || strings.Contains(r.Header.Get("Accept"), kind) {
			next.ServeHTTP(w, r)
			return
		}
		request := r.Clone(r.Context())
		request.Header = http.Header{"Accept": {"application/json;g=apidiscovery.k8s.io;v=v2;" + kind}}
		recorder := httptest.NewRecorder()
		aggregated.ServeHTTP(recorder, request)
		var found apidiscoveryv2.APIGroupDiscoveryList
		if err := json.Unmarshal(recorder.Body.Bytes(), &found); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(groupList(found))
	})
}

func groupList(found apidiscoveryv2.APIGroupDiscoveryList) metav1.APIGroupList {
	list := metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}}
	for _, g := range found.Items {
		group := metav1.APIGroup{Name: g.Name}
		for _, v := range g.Versions {
			version := metav1.GroupVersionForDiscovery{GroupVersion: g.Name + "/" + v.Version, Version: v.Version}
			group.Versions = append(group.Versions, version)
		}
		if len(group.Versions) > 0 {
			group.PreferredVersion = group.Versions[0]
			list.Groups = append(list.Groups, group)
		}
	}
	return list
}
