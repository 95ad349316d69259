package main

import (
	"context"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/names"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// objects is a kind's storage, with short names.
type objects struct {
	*registry.Store
	short []string
}

func (o *objects) ShortNames() []string { return o.short }

// statuses is the status subresource of a kind.
type statuses struct{ store *registry.Store }

func (s *statuses) New() runtime.Object { return s.store.New() }
func (s *statuses) Destroy()            {}

func (s *statuses) Get(ctx context.Context, name string, options *metav1.GetOptions) (runtime.Object, error) {
	return s.store.Get(ctx, name, options)
}

func (s *statuses) Update(
	ctx context.Context, name string, object rest.UpdatedObjectInfo, onCreate rest.ValidateObjectFunc,
	onUpdate rest.ValidateObjectUpdateFunc, _ bool, options *metav1.UpdateOptions,
) (runtime.Object, bool, error) {
	return s.store.Update(ctx, name, object, onCreate, onUpdate, false, options)
}

func (s *statuses) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set { return nil }

func (s *statuses) ConvertToTable(ctx context.Context, object, options runtime.Object) (*metav1.Table, error) {
	return s.store.ConvertToTable(ctx, object, options)
}

// attributes are what selectors can ask for.
func attributes(object runtime.Object) (labels.Set, fields.Set, error) {
	m, err := meta.Accessor(object)
	if err != nil {
		return nil, nil, err
	}
	set := fields.Set{"metadata.name": m.GetName(), "metadata.namespace": m.GetNamespace()}
	switch o := object.(type) {
	case *corev1.Pod:
		set["spec.nodeName"], set["spec.serviceAccountName"] = o.Spec.NodeName, o.Spec.ServiceAccountName
		set["status.phase"], set["status.podIP"] = string(o.Status.Phase), o.Status.PodIP
	case *corev1.Secret:
		set["type"] = string(o.Type)
	case *corev1.Service:
		set["spec.clusterIP"], set["spec.type"] = o.Spec.ClusterIP, string(o.Spec.Type)
	case *corev1.Event:
		set["involvedObject.kind"], set["involvedObject.name"] = o.InvolvedObject.Kind, o.InvolvedObject.Name
		set["involvedObject.namespace"], set["involvedObject.uid"] = o.InvolvedObject.Namespace, string(o.InvolvedObject.UID)
		set["reason"], set["type"] = o.Reason, o.Type
	}
	return labels.Set(m.GetLabels()), set, nil
}

func newStorage(r resource, getter generic.RESTOptionsGetter) (*objects, *statuses, error) {
	name := schema.GroupResource{Group: r.gv.Group, Resource: r.plural}
	newer := func(kind string) func() runtime.Object {
		return func() runtime.Object {
			object, err := scheme.New(r.gv.WithKind(kind))
			must(err)
			return object
		}
	}
	own := strategy{names.SimpleNameGenerator, scheme, r, false}
	store := &registry.Store{
		NewFunc: newer(r.kind), NewListFunc: newer(r.kind + "List"), DefaultQualifiedResource: name,
		SingularQualifiedResource: schema.GroupResource{Group: r.gv.Group, Resource: strings.ToLower(r.kind)},
		PredicateFunc: func(l labels.Selector, f fields.Selector) storage.SelectionPredicate {
			return storage.SelectionPredicate{Label: l, Field: f, GetAttrs: attributes}
		},
		CreateStrategy: own, UpdateStrategy: own, DeleteStrategy: own, TableConvertor: rest.NewDefaultTableConvertor(name),
	}
	if err := store.CompleteWithOptions(&generic.StoreOptions{RESTOptions: getter, AttrFunc: attributes}); err != nil {
		return nil, nil, err
	}
	ofStatus := *store
	ofStatus.UpdateStrategy = strategy{names.SimpleNameGenerator, scheme, r, true}
	return &objects{store, r.short}, &statuses{&ofStatus}, nil
}
