package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"sort"
	"strings"

	"sigs.k8s.io/yaml"
)

var row = regexp.MustCompile("^\\| `([^`]+)` \\| (?:`([^`]*)`|empty) \\|")

// Compares the table of values in a README with values.yaml: the same names, and the same defaults. A mapping or list
// with content may stand in one row, without its default: "`name` | see values.yaml".
func checkTable(readmePath, valuesPath string) error {
	readme, err := os.ReadFile(readmePath)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(valuesPath)
	if err != nil {
		return err
	}
	var values map[string]any
	if err := yaml.UnmarshalStrict(text, &values); err != nil {
		return err
	}
	defaults := map[string]string{}
	flatten("", values, defaults)
	var problems []error
	listed := map[string]bool{}
	for _, line := range strings.Split(string(readme), "\n") {
		if name, ok := whole(line); ok {
			before := len(defaults)
			for key := range defaults {
				if strings.HasPrefix(key, name+".") || key == name {
					listed[key] = true
					before--
				}
			}
			if before == len(defaults) {
				problems = append(problems, fmt.Errorf("%s: %s is no value", readmePath, name))
			}
			continue
		}
		cells := row.FindStringSubmatch(line)
		if cells == nil {
			continue
		}
		name, shown := cells[1], cells[2]
		expected, ok := defaults[name]
		switch {
		case !ok:
			problems = append(problems, fmt.Errorf("%s: %s is no value", readmePath, name))
		case expected != shown:
			problems = append(problems, fmt.Errorf("%s: the default of %s is %q, not %q", readmePath, name, expected, shown))
		}
		listed[name] = true
	}
	for name := range defaults {
		if !listed[name] {
			problems = append(problems, fmt.Errorf("%s: %s is missing", readmePath, name))
		}
	}
	sort.Slice(problems, func(a, b int) bool { return problems[a].Error() < problems[b].Error() })
	if len(problems) == 0 {
		fmt.Printf("%d values are in the table\n", len(defaults))
	}
	return errors.Join(problems...)
}

var wholeRow = regexp.MustCompile("^\\| `([^`]+)` \\| see values.yaml \\|")

func whole(line string) (string, bool) {
	cells := wholeRow.FindStringSubmatch(line)
	if cells == nil {
		return "", false
	}
	return cells[1], true
}

// The leaves below a value, with what stands there; text is empty where there is nothing.
func flatten(prefix string, value any, into map[string]string) {
	mapping, ok := value.(map[string]any)
	if !ok || len(mapping) == 0 && prefix != "" {
		into[prefix] = show(value)
		return
	}
	for key, inner := range mapping {
		name := key
		if prefix != "" {
			name = prefix + "." + key
		}
		flatten(name, inner, into)
	}
}

func show(value any) string {
	switch it := value.(type) {
	case string:
		return it
	case map[string]any, []any:
		if text, _ := json.Marshal(it); len(text) > 2 {
			return string(text)
		}
		return ""
	default:
		return fmt.Sprint(it)
	}
}
