package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"k8s.io/api/core/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

// Pods that a namespace with the strictest of Kubernetes' pod security standards would refuse.
func unrestricted(objects []object) []error {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		return []error{err}
	}
	level := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	var problems []error
	for _, found := range objects {
		template, err := podTemplate(found)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", found, err))
			continue
		}
		if template == nil {
			continue
		}
		result := policy.AggregateCheckResults(evaluator.EvaluatePod(level, &template.ObjectMeta, &template.Spec))
		if !result.Allowed {
			problems = append(problems, fmt.Errorf("%s: %w", found, errors.New(result.ForbiddenDetail())))
		}
	}
	return problems
}

// The pods that an object makes, as they stand in the manifest; nil if it makes none.
func podTemplate(found object) (*v1.PodTemplateSpec, error) {
	var template v1.PodTemplateSpec
	switch found.kind {
	case "Pod":
		return &template, json.Unmarshal(found.json, &template)
	case "StatefulSet", "Deployment":
		var workload struct {
			Spec struct {
				Template v1.PodTemplateSpec `json:"template"`
			} `json:"spec"`
		}
		err := json.Unmarshal(found.json, &workload)
		return &workload.Spec.Template, err
	default:
		return nil, nil
	}
}
