// Command check looks at what the chart renders as the API server of Kubernetes would: it reads manifests from standard
// input, refuses unknown and repeated fields, and applies the API's own defaults and validation. Then it looks for
// references that lead nowhere, which no API server refuses, and for pods that the pod security standard "restricted"
// does.
//
//	helm template NAME helm/alluvium ... | check          exit code 1 and a line for each problem
//	helm template NAME helm/alluvium ... | check --json   also prints the objects as a JSON array
//	check --values README.md values.yaml                  is every value in the table, with its default?
//
// Schemas for validators such as kubeconform come from the network and say less: no name is too long for them, and no
// port is named that does not exist.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 3 && args[0] == "--values":
		return checkTable(args[1], args[2])
	case len(args) == 0 || len(args) == 1 && args[0] == "--json":
		return checkManifests(os.Stdin, len(args) == 1)
	default:
		return errors.New("usage: check [--json] | check --values README.md values.yaml")
	}
}

func checkManifests(input io.Reader, printJSON bool) error {
	documents, err := split(input)
	if err != nil {
		return err
	}
	if len(documents) == 0 {
		return errors.New("no manifest on standard input")
	}
	var problems []error
	var objects []object
	for _, document := range documents {
		found, err := read(document)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		objects = append(objects, found)
	}
	// References mean something only among objects that are right themselves.
	if len(problems) == 0 {
		problems = append(danglingReferences(objects), unrestricted(objects)...)
	}
	if len(problems) > 0 {
		return errors.Join(problems...)
	}
	if !printJSON {
		fmt.Printf("%d objects are as the API wants them\n", len(objects))
		return nil
	}
	raw := make([]json.RawMessage, len(objects))
	for index, found := range objects {
		raw[index] = found.json
	}
	return json.NewEncoder(os.Stdout).Encode(raw)
}
