package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/validation/field"
	yamlstream "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/api/pod"
	"k8s.io/kubernetes/pkg/apis/apps"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	appsvalidation "k8s.io/kubernetes/pkg/apis/apps/validation"
	"k8s.io/kubernetes/pkg/apis/autoscaling"
	_ "k8s.io/kubernetes/pkg/apis/autoscaling/install"
	autoscalingvalidation "k8s.io/kubernetes/pkg/apis/autoscaling/validation"
	"k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	corevalidation "k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/apis/networking"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	networkingvalidation "k8s.io/kubernetes/pkg/apis/networking/validation"
	"k8s.io/kubernetes/pkg/apis/policy"
	_ "k8s.io/kubernetes/pkg/apis/policy/install"
	policyvalidation "k8s.io/kubernetes/pkg/apis/policy/validation"
	"k8s.io/kubernetes/pkg/apis/rbac"
	_ "k8s.io/kubernetes/pkg/apis/rbac/install"
	rbacvalidation "k8s.io/kubernetes/pkg/apis/rbac/validation"
	"sigs.k8s.io/yaml"
)

// An object of a manifest: as it stands there, and as the API server has it after defaults.
type object struct {
	kind string
	name string
	json json.RawMessage
	api  any
}

func (o object) String() string {
	return o.kind + "/" + o.name
}

// Documents of a stream of YAML that say anything.
func split(input io.Reader) ([][]byte, error) {
	reader := yamlstream.NewYAMLReader(bufio.NewReader(input))
	var documents [][]byte
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return documents, nil
		}
		if err != nil {
			return nil, err
		}
		var content any
		if err := yaml.Unmarshal(document, &content); err != nil {
			return nil, fmt.Errorf("not YAML: %w\n%s", err, document)
		}
		if content != nil {
			documents = append(documents, document)
		}
	}
}

var codecs = serializer.NewCodecFactory(legacyscheme.Scheme, serializer.EnableStrict)

func read(document []byte) (object, error) {
	var head struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Metadata   struct {
			Name string `json:"name"`
		} `json:"metadata"`
	}
	if err := yaml.Unmarshal(document, &head); err != nil {
		return object{}, err
	}
	found := object{kind: head.Kind, name: head.Metadata.Name}
	// YAMLToJSONStrict refuses a key that is there twice, of which the last would win in silence.
	converted, err := yaml.YAMLToJSONStrict(document)
	if err != nil {
		return found, fmt.Errorf("%s: %w", found, err)
	}
	found.json = converted
	if strings.HasPrefix(head.APIVersion, "monitoring.coreos.com/") {
		found.api, err = readMonitoring(head.Kind, converted)
	} else {
		found.api, err = readAPI(converted)
	}
	if err != nil {
		return found, fmt.Errorf("%s: %w", found, err)
	}
	return found, nil
}

// The operator's kinds have no validation outside of a cluster: fields and types are what can be checked.
func readMonitoring(kind string, document []byte) (any, error) {
	var into any
	switch kind {
	case "ServiceMonitor":
		into = &monitoring.ServiceMonitor{}
	case "PrometheusRule":
		into = &monitoring.PrometheusRule{}
	default:
		return nil, errors.New("a kind that this program does not know")
	}
	return into, yaml.UnmarshalStrict(document, into)
}

func readAPI(document []byte) (any, error) {
	decoded, _, err := codecs.UniversalDecoder().Decode(document, nil, nil)
	if err != nil {
		return nil, err
	}
	accessor, err := meta.Accessor(decoded)
	if err != nil {
		return nil, err
	}
	problems, err := validate(decoded, func() {
		if accessor.GetNamespace() == "" {
			accessor.SetNamespace("default")
		}
	})
	if err != nil {
		return nil, err
	}
	return decoded, problems.ToAggregate()
}

// What the API server itself fills in before it validates a service: the address that was asked for as a list, and a port
// for the load balancer's health checks.
func allocate(service *core.Service) {
	if service.Spec.ClusterIP != "" && len(service.Spec.ClusterIPs) == 0 {
		service.Spec.ClusterIPs = []string{service.Spec.ClusterIP}
	}
	local := service.Spec.ExternalTrafficPolicy == core.ServiceExternalTrafficPolicyLocal
	if service.Spec.Type == core.ServiceTypeLoadBalancer && local && service.Spec.HealthCheckNodePort == 0 {
		service.Spec.HealthCheckNodePort = 32767
	}
}

// What the API server would say to the creation of this object.
func validate(decoded runtime.Object, placed func()) (field.ErrorList, error) {
	switch decoded.(type) {
	case *rbac.ClusterRole, *rbac.ClusterRoleBinding:
	default:
		placed()
	}
	switch it := decoded.(type) {
	case *core.ConfigMap:
		return corevalidation.ValidateConfigMap(it), nil
	case *core.Secret:
		return corevalidation.ValidateSecret(it), nil
	case *core.ServiceAccount:
		return corevalidation.ValidateServiceAccount(it), nil
	case *core.Service:
		allocate(it)
		return corevalidation.ValidateServiceCreate(it), nil
	case *core.PersistentVolumeClaim:
		return corevalidation.ValidatePersistentVolumeClaim(it, corevalidation.PersistentVolumeClaimSpecValidationOptions{}), nil
	case *core.Pod:
		options := pod.GetValidationOptionsFromPodSpecAndMeta(&it.Spec, nil, &it.ObjectMeta, nil)
		return corevalidation.ValidatePodCreate(it, options), nil
	case *apps.StatefulSet:
		options := pod.GetValidationOptionsFromPodTemplate(&it.Spec.Template, nil)
		return appsvalidation.ValidateStatefulSet(it, options), nil
	case *apps.Deployment:
		options := pod.GetValidationOptionsFromPodTemplate(&it.Spec.Template, nil)
		return appsvalidation.ValidateDeployment(it, options), nil
	case *policy.PodDisruptionBudget:
		return policyvalidation.ValidatePodDisruptionBudget(it, policyvalidation.PodDisruptionBudgetValidationOptions{}), nil
	case *autoscaling.HorizontalPodAutoscaler:
		options := autoscalingvalidation.HorizontalPodAutoscalerSpecValidationOptions{MinReplicasLowerBound: 1}
		return autoscalingvalidation.ValidateHorizontalPodAutoscaler(it, options), nil
	case *networking.NetworkPolicy:
		return networkingvalidation.ValidateNetworkPolicy(it, networkingvalidation.NetworkPolicyValidationOptions{}), nil
	case *rbac.ClusterRole:
		return rbacvalidation.ValidateClusterRole(it, rbacvalidation.ClusterRoleValidationOptions{}), nil
	case *rbac.ClusterRoleBinding:
		return rbacvalidation.ValidateClusterRoleBinding(it), nil
	default:
		return nil, fmt.Errorf("%T is a kind that this program does not know", decoded)
	}
}
