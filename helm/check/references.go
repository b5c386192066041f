package main

import (
	"fmt"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/kubernetes/pkg/apis/apps"
	"k8s.io/kubernetes/pkg/apis/autoscaling"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/networking"
	"k8s.io/kubernetes/pkg/apis/policy"
)

// The pods that an object makes.
type pods struct {
	of     object
	labels labels.Set
	spec   *core.PodSpec
	// The pods of a StatefulSet have names that are known before.
	names map[string]bool
}

// References between the objects that lead nowhere: selectors that no pod has, ports that nobody opens, objects that
// are not there or there twice.
func danglingReferences(objects []object) []error {
	var problems []error
	complain := func(from object, format string, args ...any) {
		problems = append(problems, fmt.Errorf("%s: %s", from, fmt.Sprintf(format, args...)))
	}
	byName := map[string]object{}
	var all []pods
	nodePorts := map[int32]object{}
	for _, found := range objects {
		if _, twice := byName[found.String()]; twice {
			complain(found, "is there twice")
		}
		byName[found.String()] = found
		switch it := found.api.(type) {
		case *apps.StatefulSet:
			names := map[string]bool{}
			first := 0
			if it.Spec.Ordinals != nil {
				first = int(it.Spec.Ordinals.Start)
			}
			for ordinal := first; ordinal < first+int(it.Spec.Replicas); ordinal++ {
				names[fmt.Sprintf("%s-%d", it.Name, ordinal)] = true
			}
			all = append(all, pods{found, it.Spec.Template.Labels, &it.Spec.Template.Spec, names})
		case *apps.Deployment:
			all = append(all, pods{found, it.Spec.Template.Labels, &it.Spec.Template.Spec, nil})
		case *core.Pod:
			all = append(all, pods{found, it.Labels, &it.Spec, nil})
		}
	}
	exists := func(kind, name string) bool {
		_, ok := byName[kind+"/"+name]
		return ok
	}
	for _, found := range objects {
		switch it := found.api.(type) {
		case *core.Service:
			selected := matching(all, labels.SelectorFromSet(withoutPodName(it.Spec.Selector)))
			if len(selected) != 1 {
				complain(found, "selects the pods of %d objects, expected those of one", len(selected))
				continue
			}
			for _, port := range it.Spec.Ports {
				if !opens(selected[0].spec, port.TargetPort) {
					complain(found, "port %s leads to %s, which %s does not open", port.Name, port.TargetPort.String(), selected[0].of)
				}
				if other, taken := nodePorts[port.NodePort]; taken && port.NodePort != 0 {
					complain(found, "has node port %d, as %s has", port.NodePort, other)
				}
				nodePorts[port.NodePort] = found
			}
			if name, ok := it.Spec.Selector[podName]; ok && selected[0].names != nil && !selected[0].names[name] && !scaled(objects, selected[0].of) && !settings(byName, selected[0].spec)[name+".properties"] {
				complain(found, "selects the pod %s, which %s neither makes nor has settings for", name, selected[0].of)
			}
		case *apps.StatefulSet:
			service, _ := byName["Service/"+it.Spec.ServiceName].api.(*core.Service)
			if service == nil || service.Spec.ClusterIP != core.ClusterIPNone {
				complain(found, "has no headless service %s", it.Spec.ServiceName)
			}
		case *policy.PodDisruptionBudget:
			problems = append(problems, selects(found, all, it.Spec.Selector)...)
		case *networking.NetworkPolicy:
			problems = append(problems, selects(found, all, &it.Spec.PodSelector)...)
		case *autoscaling.HorizontalPodAutoscaler:
			target := it.Spec.ScaleTargetRef
			if !exists(target.Kind, target.Name) {
				complain(found, "scales %s/%s, which is not there", target.Kind, target.Name)
			}
		case *monitoring.ServiceMonitor:
			if !monitors(objects, it) {
				complain(found, "selects no service that has all of its ports")
			}
		}
	}
	for _, made := range all {
		if account := made.spec.ServiceAccountName; account != "" && account != "default" && !exists("ServiceAccount", account) {
			complain(made.of, "runs as ServiceAccount/%s, which is not there", account)
		}
		problems = append(problems, danglingMounts(made, exists)...)
		files := settings(byName, made.spec)
		for name := range made.names {
			if len(files) > 0 && !files["server.properties"] && !files[name+".properties"] {
				complain(made.of, "has no settings for the pod %s", name)
			}
		}
	}
	return problems
}

// The label that a StatefulSet gives to each of its pods.
const podName = "statefulset.kubernetes.io/pod-name"

func withoutPodName(selector map[string]string) labels.Set {
	rest := labels.Set{}
	for key, value := range selector {
		if key != podName {
			rest[key] = value
		}
	}
	return rest
}

func matching(all []pods, selector labels.Selector) []pods {
	var found []pods
	for _, candidate := range all {
		if selector.Matches(candidate.labels) {
			found = append(found, candidate)
		}
	}
	return found
}

func selects(from object, all []pods, selector *metav1.LabelSelector) []error {
	parsed, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		return []error{fmt.Errorf("%s: %w", from, err)}
	}
	if count := len(matching(all, parsed)); count != 1 {
		return []error{fmt.Errorf("%s: selects the pods of %d objects, expected those of one", from, count)}
	}
	return nil
}

func opens(spec *core.PodSpec, target intstr.IntOrString) bool {
	for _, container := range spec.Containers {
		for _, port := range container.Ports {
			if target.StrVal == port.Name && target.Type == intstr.String {
				return true
			}
			if target.IntVal == port.ContainerPort && target.Type == intstr.Int {
				return true
			}
		}
	}
	return false
}

// The files of the config map that a pod mounts.
func settings(byName map[string]object, spec *core.PodSpec) map[string]bool {
	files := map[string]bool{}
	for _, volume := range spec.Volumes {
		if volume.ConfigMap == nil {
			continue
		}
		if it, ok := byName["ConfigMap/"+volume.ConfigMap.Name].api.(*core.ConfigMap); ok {
			for file := range it.Data {
				files[file] = true
			}
		}
	}
	return files
}

// Whether an autoscaler, and not the manifest, says how many pods there are.
func scaled(objects []object, target object) bool {
	for _, found := range objects {
		if it, ok := found.api.(*autoscaling.HorizontalPodAutoscaler); ok && it.Spec.ScaleTargetRef.Name == target.name {
			return true
		}
	}
	return false
}

func monitors(objects []object, monitor *monitoring.ServiceMonitor) bool {
	selector, err := metav1.LabelSelectorAsSelector(&monitor.Spec.Selector)
	if err != nil {
		return false
	}
	for _, found := range objects {
		service, ok := found.api.(*core.Service)
		if !ok || !selector.Matches(labels.Set(service.Labels)) {
			continue
		}
		ports := map[string]bool{}
		for _, port := range service.Spec.Ports {
			ports[port.Name] = true
		}
		for _, endpoint := range monitor.Spec.Endpoints {
			if !ports[endpoint.Port] {
				return false
			}
		}
		return true
	}
	return false
}

// Config maps, volumes and probe ports of a pod. Secrets may be the user's own.
func danglingMounts(made pods, exists func(kind, name string) bool) []error {
	var problems []error
	for _, volume := range made.spec.Volumes {
		switch {
		case volume.ConfigMap != nil && volume.Name == "config" && !exists("ConfigMap", volume.ConfigMap.Name):
			problems = append(problems, fmt.Errorf("%s: mounts ConfigMap/%s, which is not there", made.of, volume.ConfigMap.Name))
		case volume.PersistentVolumeClaim != nil && !exists("PersistentVolumeClaim", volume.PersistentVolumeClaim.ClaimName):
			problems = append(problems, fmt.Errorf("%s: claims %s, which is not there", made.of, volume.PersistentVolumeClaim.ClaimName))
		}
	}
	for _, container := range made.spec.Containers {
		for _, probe := range []*core.Probe{container.StartupProbe, container.LivenessProbe, container.ReadinessProbe} {
			if probe != nil && probe.HTTPGet != nil && !opens(made.spec, probe.HTTPGet.Port) {
				problems = append(problems, fmt.Errorf("%s: a probe asks port %s, which is not opened", made.of, probe.HTTPGet.Port.String()))
			}
		}
	}
	return problems
}
