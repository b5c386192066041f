// Checks the Terraform module and its examples without their providers, which only the network has: syntax and layout,
// names that are declared and used, calls of modules, what the validations of the variables let through, the policy, and
// that nothing in the bucket expires. What resources are made of is for `tofu validate` to say: see ../README.md.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"
)

// A module is what one directory declares.
type module struct {
	dir       string
	body      []*hclsyntax.Body
	variables map[string]*hclsyntax.Block
	locals    map[string]hclsyntax.Expression
	outputs   map[string]*hclsyntax.Block
	// By type and name, with a leading "data." where they are.
	resources map[string]*hclsyntax.Block
	calls     map[string]*hclsyntax.Block
	providers map[string]bool
	used      map[string]bool
}

var problems int

func problem(at hcl.Range, format string, arguments ...any) {
	problems++
	where := fmt.Sprintf("%s:%d: ", at.Filename, at.Start.Line)
	if at.Start.Line == 0 {
		where = at.Filename + ": "
	}
	fmt.Println(where + fmt.Sprintf(format, arguments...))
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: check DIRECTORY")
		os.Exit(2)
	}
	root := os.Args[1]
	examples, err := filepath.Glob(filepath.Join(root, "examples", "*"))
	must(err)
	modules := map[string]*module{}
	for _, dir := range append([]string{root}, examples...) {
		modules[filepath.Clean(dir)] = read(dir)
	}
	for _, m := range modules {
		m.check(modules)
	}
	main := modules[filepath.Clean(root)]
	checkCases(main)
	checkPolicy(filepath.Join(root, "policy.json.tftpl"))
	checkReadme(main, filepath.Join(root, "README.md"))
	fmt.Printf("%d modules, %d variables, %d resources: %d problems\n",
		len(modules), len(main.variables), len(main.resources), problems)
	if problems > 0 {
		os.Exit(1)
	}
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}

func read(dir string) *module {
	m := &module{
		dir:       dir,
		variables: map[string]*hclsyntax.Block{},
		locals:    map[string]hclsyntax.Expression{},
		outputs:   map[string]*hclsyntax.Block{},
		resources: map[string]*hclsyntax.Block{},
		calls:     map[string]*hclsyntax.Block{},
		providers: map[string]bool{},
		used:      map[string]bool{},
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.tf"))
	must(err)
	if len(files) == 0 {
		problem(hcl.Range{Filename: dir}, "there is no .tf file")
	}
	for _, name := range files {
		source, err := os.ReadFile(name)
		must(err)
		if !bytes.Equal(hclwrite.Format(source), source) {
			problem(hcl.Range{Filename: name}, "is not laid out as `tofu fmt` does it")
		}
		file, diags := hclsyntax.ParseConfig(source, name, hcl.Pos{Line: 1, Column: 1})
		report(diags)
		if diags.HasErrors() {
			continue
		}
		body := file.Body.(*hclsyntax.Body)
		m.body = append(m.body, body)
		for _, block := range body.Blocks {
			m.declare(block)
		}
	}
	return m
}

func report(diags hcl.Diagnostics) {
	for _, diag := range diags {
		at := hcl.Range{}
		if diag.Subject != nil {
			at = *diag.Subject
		}
		problem(at, "%s; %s", diag.Summary, diag.Detail)
	}
}

// The labels of each kind of block at the top of a file.
var labels = map[string]int{
	"terraform": 0, "provider": 1, "variable": 1, "locals": 0, "output": 1, "resource": 2, "data": 2, "module": 1,
}

func (m *module) declare(block *hclsyntax.Block) {
	wanted, known := labels[block.Type]
	if !known || wanted != len(block.Labels) {
		problem(block.DefRange(), "a %s block with %d labels is not known here", block.Type, len(block.Labels))
		return
	}
	put := func(into map[string]*hclsyntax.Block, name string) {
		if into[name] != nil {
			problem(block.DefRange(), "%s %s is there twice", block.Type, name)
		}
		into[name] = block
	}
	switch block.Type {
	case "variable":
		put(m.variables, block.Labels[0])
	case "output":
		put(m.outputs, block.Labels[0])
	case "module":
		put(m.calls, block.Labels[0])
	case "resource":
		put(m.resources, block.Labels[0]+"."+block.Labels[1])
	case "data":
		put(m.resources, "data."+block.Labels[0]+"."+block.Labels[1])
	case "locals":
		for name, attribute := range block.Body.Attributes {
			if m.locals[name] != nil {
				problem(attribute.SrcRange, "local %s is there twice", name)
			}
			m.locals[name] = attribute.Expr
		}
	case "terraform":
		for _, inner := range block.Body.Blocks {
			if inner.Type == "required_providers" {
				for name := range inner.Body.Attributes {
					m.providers[name] = true
				}
			}
		}
	}
}

func (m *module) check(all map[string]*module) {
	for _, body := range m.body {
		m.checkBody(body, nil)
	}
	for name, block := range m.resources {
		provider, _, _ := strings.Cut(block.Labels[0], "_")
		if !m.providers[provider] {
			problem(block.DefRange(), "%s needs provider %s, which is not in required_providers", name, provider)
		}
		if strings.HasPrefix(name, "data.") && !m.used[name] {
			problem(block.DefRange(), "%s is used by nothing", name)
		}
	}
	for name, block := range m.variables {
		if !m.used["var."+name] {
			problem(block.DefRange(), "variable %s is used by nothing", name)
		}
		for _, wanted := range []string{"description", "type"} {
			if block.Body.Attributes[wanted] == nil {
				problem(block.DefRange(), "variable %s has no %s", name, wanted)
			}
		}
	}
	for name := range m.locals {
		if !m.used["local."+name] {
			problem(hcl.Range{Filename: m.dir}, "local %s is used by nothing", name)
		}
	}
	for name, block := range m.outputs {
		if block.Body.Attributes["description"] == nil || block.Body.Attributes["value"] == nil {
			problem(block.DefRange(), "output %s has no description or no value", name)
		}
	}
	for name, call := range m.calls {
		m.checkCall(name, call, all)
	}
}

// checkBody looks at all expressions; iterators are the names of the dynamic blocks around them.
func (m *module) checkBody(body *hclsyntax.Body, iterators []string) {
	for _, attribute := range body.Attributes {
		for _, traversal := range hclsyntax.Variables(attribute.Expr) {
			m.checkReference(traversal, attribute.Name, iterators)
		}
	}
	for _, block := range body.Blocks {
		inner := iterators
		if block.Type == "dynamic" && len(block.Labels) == 1 {
			inner = append(append([]string{}, iterators...), block.Labels[0])
		}
		if strings.Contains(block.Type, "expiration") || strings.Contains(block.Type, "transition") {
			problem(block.DefRange(), "%s: nothing in the bucket may expire or go to an archive", block.Type)
		}
		m.checkBody(block.Body, inner)
	}
}

func attribute(traversal hcl.Traversal, at int) string {
	if at < len(traversal) {
		if step, ok := traversal[at].(hcl.TraverseAttr); ok {
			return step.Name
		}
	}
	return ""
}

func (m *module) checkReference(traversal hcl.Traversal, of string, iterators []string) {
	at := traversal.SourceRange()
	first, second := traversal.RootName(), attribute(traversal, 1)
	use := func(there bool, name string) {
		m.used[name] = true
		if !there {
			problem(at, "%s is not declared", name)
		}
	}
	resource := func(name string, rest int) {
		block := m.resources[name]
		use(block != nil, name)
		// A resource with a count is a list.
		counted := block != nil && block.Body.Attributes["count"] != nil
		if counted && attribute(traversal, rest) != "" {
			problem(at, "%s has a count, so it needs an index", name)
		}
	}
	for _, iterator := range iterators {
		if first == iterator {
			return
		}
	}
	switch first {
	case "var":
		use(m.variables[second] != nil, "var."+second)
	case "local":
		use(m.locals[second] != nil, "local."+second)
	case "module":
		use(m.calls[second] != nil, "module."+second)
	case "data":
		resource("data."+second+"."+attribute(traversal, 2), 3)
	case "path":
		use(second == "module" || second == "root", "path."+second)
	case "string", "number", "bool", "any", "list", "map", "set", "object", "tuple", "optional":
		if of != "type" {
			problem(at, "%s is not declared", first)
		}
	default:
		resource(first+"."+second, 2)
	}
}

// Arguments of a module call that are not the module's.
var meta = map[string]bool{"source": true, "version": true, "count": true, "for_each": true, "providers": true, "depends_on": true}

func (m *module) checkCall(name string, call *hclsyntax.Block, all map[string]*module) {
	source := call.Body.Attributes["source"]
	if source == nil {
		problem(call.DefRange(), "module %s has no source", name)
		return
	}
	value, diags := source.Expr.Value(nil)
	report(diags)
	if diags.HasErrors() || value.Type() != cty.String {
		return
	}
	called := all[filepath.Join(m.dir, value.AsString())]
	if called == nil {
		problem(source.SrcRange, "module %s: there is no module in %s", name, value.AsString())
		return
	}
	for argument, given := range call.Body.Attributes {
		if !meta[argument] && called.variables[argument] == nil {
			problem(given.SrcRange, "module %s has no variable %s", name, argument)
		}
	}
	for variable, block := range called.variables {
		if block.Body.Attributes["default"] == nil && call.Body.Attributes[variable] == nil {
			problem(call.DefRange(), "module %s needs %s", name, variable)
		}
	}
	for _, body := range m.body {
		_ = hclsyntax.VisitAll(body, func(node hclsyntax.Node) hcl.Diagnostics {
			expression, ok := node.(*hclsyntax.ScopeTraversalExpr)
			if !ok {
				return nil
			}
			traversal := expression.Traversal
			if traversal.RootName() == "module" && attribute(traversal, 1) == name {
				if output := attribute(traversal, 2); called.outputs[output] == nil {
					problem(traversal.SourceRange(), "module %s has no output %s", name, output)
				}
			}
			return nil
		})
	}
}

// checkPolicy renders the policy: it must be JSON that allows named actions on what it was given.
func checkPolicy(name string) {
	source, err := os.ReadFile(name)
	must(err)
	template, diags := hclsyntax.ParseTemplate(source, name, hcl.Pos{Line: 1, Column: 1})
	report(diags)
	if diags.HasErrors() {
		return
	}
	arns := map[string]cty.Value{
		"bucket_arn":  cty.StringVal("arn:aws:s3:::b"),
		"objects_arn": cty.StringVal("arn:aws:s3:::b/p/*"),
	}
	rendered, diags := template.Value(&hcl.EvalContext{Variables: arns})
	report(diags)
	if diags.HasErrors() {
		return
	}
	var policy struct {
		Version   string
		Statement []struct {
			Sid, Effect, Resource string
			Action                any
		}
	}
	at := hcl.Range{Filename: name}
	decoder := json.NewDecoder(strings.NewReader(rendered.AsString()))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&policy); err != nil {
		problem(at, "is not the policy that was expected: %v", err)
		return
	}
	resources := map[string]bool{}
	for _, statement := range policy.Statement {
		resources[statement.Resource] = true
		if statement.Effect != "Allow" || strings.Contains(fmt.Sprint(statement.Action), "*") {
			problem(at, "statement %s does not allow a list of actions", statement.Sid)
		}
	}
	if policy.Version != "2012-10-17" || len(resources) != 2 || !resources["arn:aws:s3:::b"] || !resources["arn:aws:s3:::b/p/*"] {
		problem(at, "it is about %v in version %s", resources, policy.Version)
	}
}

// checkReadme wants a row for every variable and output, and none for others.
func checkReadme(m *module, name string) {
	text, err := os.ReadFile(name)
	must(err)
	rows := map[string]bool{}
	for _, line := range strings.Split(string(text), "\n") {
		if row, ok := strings.CutPrefix(line, "| `"); ok {
			if cell, _, ok := strings.Cut(row, "` |"); ok {
				rows[cell] = true
			}
		}
	}
	declared := map[string]bool{}
	for variable := range m.variables {
		declared[variable] = true
	}
	for output := range m.outputs {
		declared[output] = true
	}
	for _, pair := range []struct {
		a, b map[string]bool
		what string
	}{{declared, rows, "has no row for"}, {rows, declared, "has a row for what is not there:"}} {
		var missing []string
		for entry := range pair.a {
			if !pair.b[entry] {
				missing = append(missing, entry)
			}
		}
		sort.Strings(missing)
		for _, entry := range missing {
			problem(hcl.Range{Filename: name}, "%s `%s`", pair.what, entry)
		}
	}
}
