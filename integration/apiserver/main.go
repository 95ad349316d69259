// weft-testapi is a Kubernetes API server for tests: the generic registry of k8s.io/apiserver (etcd, watch cache, resource
// versions, selectors, patch, server-side apply) for built-in kinds, and the whole of apiextensions-apiserver for custom ones.
//
// What a cluster has and this lacks: authorization, admission, controllers, kubelets, aggregation, and validation of built-in kinds.
// It compiles from Debian's golang-*-dev packages alone.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"sort"

	corev1 "k8s.io/api/core/v1"
	apiextv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextv1beta1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1beta1"
	apiext "k8s.io/apiextensions-apiserver/pkg/apiserver"
	apiextopts "k8s.io/apiextensions-apiserver/pkg/cmd/server/options"
	apiextopenapi "k8s.io/apiextensions-apiserver/pkg/generated/openapi"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	apiopenapi "k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/options"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/util/compatibility"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	kscheme "k8s.io/client-go/kubernetes/scheme"
)

const prefix = "/registry"

var (
	scheme = runtime.NewScheme()
	codecs serializer.CodecFactory

	etcd       = flag.String("etcd", "http://127.0.0.1:2379", "URL of etcd")
	bind       = flag.String("bind", "127.0.0.1", "address to serve on")
	port       = flag.Int("port", 6443, "port to serve on")
	certDir    = flag.String("cert-dir", "certs", "where the server's certificate is kept; made if there is none")
	requestsTo = flag.String("request-log", "", "file that gets a line for each request")
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "weft-testapi:", err)
		os.Exit(1)
	}
}

// registerKinds makes the scheme know the built-in kinds, and returns them by group and version.
func registerKinds() ([]schema.GroupVersion, map[schema.GroupVersion][]resource) {
	must(kscheme.AddToScheme(scheme))
	metav1.AddToGroupVersion(scheme, gv("", "v1"))
	byGroup := map[schema.GroupVersion][]resource{}
	for _, r := range resources {
		// The published type doubles as the internal one.
		for _, kind := range []string{r.kind, r.kind + "List"} {
			object, err := scheme.New(r.gv.WithKind(kind))
			must(err)
			internal := schema.GroupVersionKind{Group: r.gv.Group, Version: runtime.APIVersionInternal, Kind: kind}
			scheme.AddKnownTypeWithName(internal, object)
		}
		same := func(label, value string) (string, string, error) { return label, value, nil }
		must(scheme.AddFieldLabelConversionFunc(r.gv.WithKind(r.kind), same))
		byGroup[r.gv] = append(byGroup[r.gv], r)
	}
	codecs = serializer.NewCodecFactory(scheme)
	var groups []schema.GroupVersion
	for group := range byGroup {
		groups = append(groups, group)
	}
	sort.Slice(groups, func(i, j int) bool { return groups[i].String() < groups[j].String() })
	return groups, byGroup
}

func etcdOptions(codec runtime.Codec) *options.EtcdOptions {
	config := storagebackend.NewDefaultConfig(prefix, codec)
	config.Transport.ServerList = []string{*etcd}
	return options.NewEtcdOptions(config)
}

func newConfig(codecs serializer.CodecFactory, etcd *options.EtcdOptions) *server.RecommendedConfig {
	c := server.NewRecommendedConfig(codecs)
	c.EffectiveVersion, c.FeatureGate = compatibility.DefaultBuildEffectiveVersion(), utilfeature.DefaultFeatureGate
	c.Authentication.Authenticator = authenticator.RequestFunc(authenticate)
	c.Authorization.Authorizer = authorizerfactory.NewAlwaysAllowAuthorizer()
	must(etcd.ApplyTo(&c.Config))
	return c
}

// newCustomServer serves custom resources. The other server passes on to it what it does not know.
func newCustomServer(core *server.RecommendedConfig) *apiext.CustomResourceDefinitions {
	etcd := etcdOptions(apiext.Codecs.LegacyCodec(apiextv1beta1.SchemeGroupVersion, apiextv1.SchemeGroupVersion))
	c := newConfig(apiext.Codecs, etcd)
	c.SecureServing, c.LoopbackClientConfig = core.SecureServing, core.LoopbackClientConfig
	c.SharedInformerFactory = core.SharedInformerFactory
	enabled := apiext.DefaultAPIResourceConfigSource()
	must(options.NewAPIEnablementOptions().ApplyTo(&c.Config, enabled, apiext.Scheme))
	namer := apiopenapi.NewDefinitionNamer(apiext.Scheme, kscheme.Scheme)
	c.OpenAPIConfig = server.DefaultOpenAPIConfig(apiextopenapi.GetOpenAPIDefinitions, namer)
	c.OpenAPIV3Config = server.DefaultOpenAPIV3Config(apiextopenapi.GetOpenAPIDefinitions, namer)
	config := &apiext.Config{GenericConfig: c, ExtraConfig: apiext.ExtraConfig{
		CRDRESTOptionsGetter: apiextopts.NewCRDRESTOptionsGetter(*etcd, c.ResourceTransformers, c.StorageObjectCountTracker),
		MasterCount:          1,
		ServiceResolver:      webhook.NewDefaultServiceResolver(),
		AuthResolverWrapper:  webhook.NewDefaultAuthenticationInfoResolverWrapper(nil, nil, c.LoopbackClientConfig, nil),
	}}
	custom, err := config.Complete().New(server.NewEmptyDelegateWithCustomHandler(http.NotFoundHandler()))
	must(err)
	return custom
}

func install(s *server.GenericAPIServer, core *server.RecommendedConfig, group schema.GroupVersion, kinds []resource) {
	info := server.NewDefaultAPIGroupInfo(group.Group, scheme, metav1.ParameterCodec, codecs)
	info.PrioritizedVersions = []schema.GroupVersion{group}
	storage := map[string]rest.Storage{}
	for _, r := range kinds {
		objects, statuses, err := newStorage(r, core.RESTOptionsGetter)
		must(err)
		storage[r.plural] = objects
		if r.status {
			storage[r.plural+"/status"] = statuses
		}
	}
	info.VersionedResourcesStorageMap[group.Version] = storage
	if group.Group == "" {
		must(s.InstallLegacyAPIGroup("/api", &info))
	} else {
		must(s.InstallAPIGroup(&info))
	}
}

// settle makes what every cluster has, and looks at the addresses that were given away before a restart.
func settle(ctx context.Context, client kubernetes.Interface) error {
	for _, name := range []string{"default", "kube-system"} {
		meta := metav1.ObjectMeta{Name: name}
		// There already, after a restart.
		client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: meta}, metav1.CreateOptions{})
		account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
		client.CoreV1().ServiceAccounts(name).Create(ctx, account, metav1.CreateOptions{})
	}
	services, err := client.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	serviceIPs.seen(services.Items)
	return nil
}

func main() {
	flag.Parse()
	groups, byGroup := registerKinds()
	address := net.ParseIP(*bind)
	if address == nil {
		must(fmt.Errorf("--bind %q is not an IP address", *bind))
	}
	secure := options.NewSecureServingOptions().WithLoopback()
	secure.BindAddress, secure.BindPort = address, *port
	secure.ServerCert.CertDirectory, secure.ServerCert.PairName = *certDir, "apiserver"
	must(secure.MaybeDefaultWithSelfSignedCerts("localhost", nil, []net.IP{address, net.IPv4(127, 0, 0, 1)}))

	core := newConfig(codecs, etcdOptions(codecs.LegacyCodec(groups...)))
	must(secure.ApplyTo(&core.SecureServing, &core.LoopbackClientConfig))
	client, err := kubernetes.NewForConfig(core.LoopbackClientConfig)
	must(err)
	core.SharedInformerFactory = informers.NewSharedInformerFactory(client, 0)
	custom := newCustomServer(core).GenericAPIServer

	namer := apiopenapi.NewDefinitionNamer(scheme)
	core.OpenAPIConfig = server.DefaultOpenAPIConfig(definitions, namer)
	core.OpenAPIV3Config = server.DefaultOpenAPIV3Config(definitions, namer)
	// One document tells of both servers' kinds.
	core.AggregatedDiscoveryGroupManager = custom.AggregatedDiscoveryGroupManager
	core.BuildHandlerChainFunc = func(handler http.Handler, c *server.Config) http.Handler {
		chain := plainGroups(server.DefaultBuildHandlerChain(handler, c), custom.AggregatedDiscoveryGroupManager)
		if *requestsTo == "" {
			return chain
		}
		log, err := openRequestLog(*requestsTo, c.RequestInfoResolver)
		must(err)
		return log.wrap(chain)
	}
	s, err := core.Complete().New("weft-testapi", custom)
	must(err)
	for _, group := range groups {
		install(s, core, group, byGroup[group])
	}
	s.AddPostStartHookOrDie("settle", func(hook server.PostStartHookContext) error { return settle(hook, client) })
	must(s.PrepareRun().RunWithContext(server.SetupSignalContext()))
}
