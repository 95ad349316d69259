package main

import (
	"context"
	"reflect"
	"strings"

	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/storage/names"
)

// strategy is what happens to a built-in object before it is stored: the few defaults that somebody looks at, generations, and
// the wall between spec and status. There is no validation but of names that follow a rule of their kind.
type strategy struct {
	names.NameGenerator
	runtime.ObjectTyper
	resource  resource
	forStatus bool
}

func (s strategy) NamespaceScoped() bool          { return s.resource.namespaced }
func (s strategy) AllowUnconditionalUpdate() bool { return true }
func (s strategy) Canonicalize(runtime.Object)    {}
func (s strategy) AllowCreateOnUpdate() bool {
	return s.resource.kind == "Lease" || s.resource.kind == "Event"
}
func (s strategy) Validate(_ context.Context, object runtime.Object) field.ErrorList {
	if bundle, ok := object.(*certificatesv1beta1.ClusterTrustBundle); ok {
		return validateBundleName(bundle)
	}
	return nil
}
func (s strategy) ValidateUpdate(_ context.Context, object, old runtime.Object) field.ErrorList {
	if bundle, ok := object.(*certificatesv1beta1.ClusterTrustBundle); ok {
		if before := old.(*certificatesv1beta1.ClusterTrustBundle); before.Spec.SignerName != bundle.Spec.SignerName {
			return field.ErrorList{field.Invalid(field.NewPath("spec", "signerName"), bundle.Spec.SignerName, "field is immutable")}
		}
	}
	return nil
}

// validateBundleName is the rule that kube-apiserver has: a bundle of a signer carries its name as a prefix, and no other has a colon.
func validateBundleName(bundle *certificatesv1beta1.ClusterTrustBundle) field.ErrorList {
	path, signer := field.NewPath("metadata", "name"), bundle.Spec.SignerName
	if signer == "" {
		if strings.Contains(bundle.Name, ":") {
			return field.ErrorList{field.Invalid(path, bundle.Name, "ClusterTrustBundle without signer name must not have \":\" in its name")}
		}
		return nil
	}
	if prefix := strings.ReplaceAll(signer, "/", ":") + ":"; !strings.HasPrefix(bundle.Name, prefix) || bundle.Name == prefix {
		return field.ErrorList{field.Invalid(path, bundle.Name, "ClusterTrustBundle for signerName "+signer+" must be named with prefix "+prefix)}
	}
	return nil
}

func (s strategy) WarningsOnCreate(context.Context, runtime.Object) []string { return nil }
func (s strategy) WarningsOnUpdate(context.Context, runtime.Object, runtime.Object) []string {
	return nil
}

func (s strategy) PrepareForCreate(_ context.Context, object runtime.Object) {
	if m, err := meta.Accessor(object); err == nil && fieldOf(object, "Spec").IsValid() {
		m.SetGeneration(1)
	}
	if s.resource.status {
		status := fieldOf(object, "Status")
		status.Set(reflect.Zero(status.Type()))
	}
	switch o := object.(type) {
	case *corev1.Namespace:
		o.Status.Phase = corev1.NamespaceActive
		if o.Labels == nil {
			o.Labels = map[string]string{}
		}
		o.Labels[corev1.LabelMetadataName] = o.Name
	case *corev1.Pod:
		o.Status.Phase = corev1.PodPending
		if o.Spec.ServiceAccountName == "" {
			o.Spec.ServiceAccountName = "default"
		}
		o.Spec.DeprecatedServiceAccount = o.Spec.ServiceAccountName
		if o.Spec.RestartPolicy == "" {
			o.Spec.RestartPolicy = corev1.RestartPolicyAlways
		}
	case *corev1.Service:
		defaultService(o)
	}
}

func (s strategy) PrepareForUpdate(_ context.Context, object, old runtime.Object) {
	if s.forStatus {
		copyField(object, old, "Spec")
		return
	}
	if s.resource.status {
		copyField(object, old, "Status")
	}
	if spec, oldSpec := fieldOf(object, "Spec"), fieldOf(old, "Spec"); spec.IsValid() {
		m, err := meta.Accessor(object)
		must(err)
		oldMeta, err := meta.Accessor(old)
		must(err)
		m.SetGeneration(oldMeta.GetGeneration())
		if !reflect.DeepEqual(spec.Interface(), oldSpec.Interface()) {
			m.SetGeneration(oldMeta.GetGeneration() + 1)
		}
	}
	if service, ok := object.(*corev1.Service); ok {
		if before := old.(*corev1.Service); service.Spec.ClusterIP == "" {
			service.Spec.ClusterIP, service.Spec.ClusterIPs = before.Spec.ClusterIP, before.Spec.ClusterIPs
		}
		defaultService(service)
	}
}

func defaultService(service *corev1.Service) {
	spec := &service.Spec
	if spec.Type == "" {
		spec.Type = corev1.ServiceTypeClusterIP
	}
	if spec.ClusterIP == "" && spec.Type != corev1.ServiceTypeExternalName {
		spec.ClusterIP = serviceIPs.next()
	}
	if len(spec.ClusterIPs) == 0 && spec.ClusterIP != "" {
		spec.ClusterIPs = []string{spec.ClusterIP}
	}
	for i := range spec.Ports {
		port := &spec.Ports[i]
		if port.Protocol == "" {
			port.Protocol = corev1.ProtocolTCP
		}
		if port.TargetPort == intstr.FromInt32(0) || port.TargetPort == intstr.FromString("") {
			port.TargetPort = intstr.FromInt32(port.Port)
		}
	}
}

func fieldOf(object runtime.Object, name string) reflect.Value {
	return reflect.ValueOf(object).Elem().FieldByName(name)
}

func copyField(to, from runtime.Object, name string) {
	if t, f := fieldOf(to, name), fieldOf(from, name); t.IsValid() && f.IsValid() {
		t.Set(f)
	}
}
