package main

import (
	"fmt"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/tryfunc"
	"github.com/hashicorp/hcl/v2/ext/typeexpr"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	yaml "github.com/zclconf/go-cty-yaml"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"
)

// Values of variables, as they stand in a file, that must pass and that must not.
var cases = map[string]struct{ good, bad []string }{
	"name":   {good: []string{`"alluvium"`, `"a"`, `"a-1"`}, bad: []string{`""`, `"Alluvium"`, `"1a"`, `"a-"`, `"a_b"`, `"abcdefghijabcdefghijabcdefghijabcdefghija"`}},
	"bucket": {good: []string{`"my-bucket"`, `"123"`}, bad: []string{`"ab"`, `"My-bucket"`, `"my.bucket"`, `"-bucket"`, `"bucket-"`, `"s3://bucket"`}},
	"prefix": {good: []string{`""`, `"a"`, `"team/a_b-1"`}, bad: []string{`"/a"`, `"a/"`, `"a//b"`, `"a b"`, `"a/../b"`, `"*"`}},
	"kms": {
		good: []string{`null`, `{ key_arn = "arn:aws:kms:eu-central-1:123456789012:key/12345678-abcd-1234-abcd-123456789012" }`},
		bad:  []string{`{ key_arn = "alias/key" }`, `{ key_arn = "arn:aws:kms:eu-central-1:123456789012:alias/key" }`, `{ key_arn = "" }`},
	},
	"abort_uploads_after_days": {good: []string{`1`, `7`}, bad: []string{`0`, `-1`, `1.5`}},
	"namespace":                {good: []string{`"alluvium"`, `"a"`}, bad: []string{`""`, `"*"`, `"a*"`, `"A"`, `"-a"`}},
	"service_account":          {good: []string{`"alluvium"`, `"a-1"`}, bad: []string{`""`, `"*"`, `"a:b"`, `"a-"`}},
	"irsa": {
		good: []string{`null`, `{ oidc_provider_arn = "arn:aws:iam::123456789012:oidc-provider/oidc.eks.eu-central-1.amazonaws.com/id/ABC" }`},
		bad:  []string{`{ oidc_provider_arn = "https://oidc.eks.eu-central-1.amazonaws.com/id/ABC" }`, `{ oidc_provider_arn = "arn:aws:iam::123456789012:oidc-provider/*" }`},
	},
	"pod_identity": {good: []string{`null`, `{ cluster_name = "my-cluster_1" }`}, bad: []string{`{ cluster_name = "" }`, `{ cluster_name = "my cluster" }`}},
	"gateway_endpoint": {
		good: []string{`null`, `{ vpc_id = "vpc-0a1", route_table_ids = ["rtb-0b2"] }`},
		bad:  []string{`{ vpc_id = "my-vpc", route_table_ids = ["rtb-0b2"] }`, `{ vpc_id = "vpc-0a1", route_table_ids = [] }`},
	},
	"helm": {
		good: []string{`null`, `{ image_repository = "r" }`, `{ image_repository = "r", replicas = 5, values = ["a: 1"] }`},
		bad:  []string{`{ image_repository = "r", replicas = 0 }`, `{ image_repository = "r", replicas = 1.5 }`, `{ image_repository = "r", values = ["a: [1"] }`},
	},
}

var allTrue = function.New(&function.Spec{
	Params: []function.Parameter{{Name: "list", Type: cty.List(cty.Bool)}},
	Type:   function.StaticReturnType(cty.Bool),
	Impl: func(arguments []cty.Value, _ cty.Type) (cty.Value, error) {
		for _, value := range arguments[0].AsValueSlice() {
			if value.False() {
				return cty.False, nil
			}
		}
		return cty.True, nil
	},
})

var functions = map[string]function.Function{
	"alltrue":    allTrue,
	"can":        tryfunc.CanFunc,
	"floor":      stdlib.FloorFunc,
	"length":     stdlib.LengthFunc,
	"regex":      stdlib.RegexFunc,
	"try":        tryfunc.TryFunc,
	"yamldecode": yaml.YAMLDecodeFunc,
}

func checkCases(m *module) {
	for name, block := range m.variables {
		validations := 0
		for _, inner := range block.Body.Blocks {
			if inner.Type == "validation" {
				validations++
			}
		}
		tried, there := cases[name]
		if validations > 0 && (!there || len(tried.bad) < validations) {
			problem(block.DefRange(), "variable %s: %d validations need as many values that they refuse in cases.go", name, validations)
		}
		if fallback := block.Body.Attributes["default"]; fallback != nil && !passes(block, name, fallback.Expr) {
			problem(fallback.SrcRange, "variable %s refuses its own default", name)
		}
		for _, text := range tried.good {
			if !passes(block, name, expression(text)) {
				problem(block.DefRange(), "variable %s refuses %s", name, text)
			}
		}
		refusedBy := map[int]bool{}
		for _, text := range tried.bad {
			by := refusals(block, name, expression(text))
			if len(by) == 0 {
				problem(block.DefRange(), "variable %s lets %s through", name, text)
			}
			for _, index := range by {
				refusedBy[index] = true
			}
		}
		if len(refusedBy) < validations {
			problem(block.DefRange(), "variable %s: only %d of %d validations have refused anything", name, len(refusedBy), validations)
		}
	}
	for name := range cases {
		if m.variables[name] == nil {
			problem(hcl.Range{Filename: "cases.go"}, "there is no variable %s", name)
		}
	}
}

func expression(text string) hclsyntax.Expression {
	parsed, diags := hclsyntax.ParseExpression([]byte(text), "cases.go", hcl.Pos{Line: 1, Column: 1})
	if diags.HasErrors() {
		must(fmt.Errorf("cases.go: %s: %w", text, diags))
	}
	return parsed
}

func passes(block *hclsyntax.Block, name string, value hclsyntax.Expression) bool {
	return len(refusals(block, name, value)) == 0
}

// refusals are the validations that refuse a value, by index.
func refusals(block *hclsyntax.Block, name string, given hclsyntax.Expression) []int {
	value, diags := given.Value(nil)
	report(diags)
	constraint, defaults, diags := typeexpr.TypeConstraintWithDefaults(block.Body.Attributes["type"].Expr)
	report(diags)
	if defaults != nil && !value.IsNull() {
		value = defaults.Apply(value)
	}
	value, err := convert.Convert(value, constraint)
	if err != nil {
		problem(given.Range(), "variable %s: %v", name, err)
		return nil
	}
	context := &hcl.EvalContext{
		Variables: map[string]cty.Value{"var": cty.ObjectVal(map[string]cty.Value{name: value})},
		Functions: functions,
	}
	var by []int
	index := 0
	for _, inner := range block.Body.Blocks {
		if inner.Type != "validation" {
			continue
		}
		holds, diags := inner.Body.Attributes["condition"].Expr.Value(context)
		report(diags)
		if !diags.HasErrors() && holds.False() {
			by = append(by, index)
		}
		index++
	}
	return by
}
