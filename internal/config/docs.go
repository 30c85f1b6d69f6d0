package config

import (
	"fmt"
	"reflect"
	"strings"
)

// Docs renders the reference of all settings as Markdown.
func Docs() string {
	var b strings.Builder
	b.WriteString(docsHead)
	c := reference()
	root := fields(reflect.ValueOf(c).Elem(), "")
	table(&b, root)
	for _, f := range root {
		section(&b, f)
	}
	b.WriteString(docsTail)
	b.WriteString("```yaml\n" + Example() + "```\n")
	return b.String()
}

const docsHead = `# Configuration

Every setting has a default except the credentials. A value comes from, in this order: the command line, the
environment, the YAML file, the default.

The file is the one that ` + "`--config`" + ` or ` + "`BERTH_CONFIG`" + ` names, else ` + "`berth.yaml`" + ` in the working directory, else
` + "`" + SystemFile + "`" + `. It is read strictly: an unknown key or a value of the wrong kind is an error that names the line.

- **Sizes** are a number and a unit: ` + "`512MiB`, `2GiB`, `1.5GB`" + `.
- **Durations** are numbers with units: ` + "`15s`, `5m`, `1h30m`" + `.
- **Secrets** are given by reference, never as they are: ` + "`{env: NAME}`" + ` reads an environment variable, ` + "`{file: path}`" + ` a
  file (relative to the YAML file; white space around the value is not part of it).

An environment variable that is empty counts as not set. ` + "`NO_COLOR`" + ` asks for output without colours.

## General

`

const docsTail = `## Example

`

// reference returns a Config with its fixed defaults and one of each list, for
// the documentation to walk.
func reference() *Config {
	c := &Config{Environments: []Environment{{}}, Agents: []Agent{{}}}
	c.applyDefaults()
	return c
}

func section(b *strings.Builder, f field) {
	v, name := f.value, f.path
	switch {
	case f.listed():
		v, name = v.Index(0), f.path+"[]"
	case !f.section():
		return
	}
	fmt.Fprintf(b, "## %s\n\n%s\n\n", name, f.doc())
	inner := fields(v, name)
	table(b, inner)
	for _, g := range inner {
		section(b, g)
	}
}

func table(b *strings.Builder, fs []field) {
	b.WriteString("| Key | Value | Default | Environment | Meaning |\n| --- | --- | --- | --- | --- |\n")
	for _, f := range fs {
		if f.section() || f.listed() {
			continue
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s | %s |\n", f.path, bounds(f), defaultText(f), quoted(f.env()), cell(f.doc()))
	}
	b.WriteByte('\n')
}

func bounds(f field) string {
	k := f.kind()
	if allowed := f.oneof(); allowed != nil {
		return quoted(allowed)
	}
	if lo, hi := f.tag.Get("min"), f.tag.Get("max"); lo != "" {
		k += fmt.Sprintf(", %s to %s", lo, hi)
	}
	return k
}

func defaultText(f field) string {
	if text := f.tag.Get("default"); text != "" {
		return "`" + text + "`"
	}
	return cell(f.computed())
}

func quoted(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return "`" + strings.Join(names, "`, `") + "`"
}

func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }

// Example renders a YAML file in which every setting stands, commented out,
// with its default or a sample value.
func Example() string {
	var b strings.Builder
	b.WriteString("# Berth's configuration. Every setting is optional except the environments' ids and\n" +
		"# keys, which may come from the environment as well. docs/configuration.md explains all.\n")
	example(&b, fields(reflect.ValueOf(reference()).Elem(), ""), "")
	return b.String()
}

func example(b *strings.Builder, fs []field, indent string) {
	for _, f := range fs {
		if indent == "" || f.section() {
			b.WriteByte('\n')
		}
		for _, line := range wrap(f.doc(), 88-len(indent)) {
			fmt.Fprintf(b, "%s# %s\n", indent, line)
		}
		switch {
		case f.section():
			fmt.Fprintf(b, "%s#%s:\n", indent, f.key())
			example(b, fields(f.value, f.path), indent+"  ")
		case f.listed():
			fmt.Fprintf(b, "%s#%s:\n%s  #-\n", indent, f.key(), indent)
			example(b, fields(f.value.Index(0), f.path), indent+"    ")
		default:
			fmt.Fprintf(b, "%s#%s: %s\n", indent, f.key(), sample(f))
		}
	}
}

// samples are shown where there is no fixed default.
var samples = map[string]string{
	"data_dir":                          "/var/lib/berth",
	"api_key":                           "{env: ANTHROPIC_API_KEY}",
	"access.token":                      "{file: api.token}",
	"environments.id":                   "env_0123456789",
	"environments.key":                  "{file: environment.key}",
	"environments.base_url":             "https://api.anthropic.com",
	"environments.webhook_signing_keys": "[{file: webhook.key}]",
	"webhooks.public_url":               "https://berth.example.com",
	"webhooks.signing_keys":             "[{env: WEBHOOK_KEY_1}, {env: WEBHOOK_KEY_2}]",
	"sessions.capacity":                 "16",
	"agents.id":                         "agent_0123456789",
	"agents.name":                       `""`,
	"agents.sandbox.image":              "host",
	"agents.sandbox.cpus":               "4",
	"agents.sandbox.memory":             "8GiB",
	"agents.sandbox.disk":               "20GiB",
	"agents.sandbox.processes":          "1024",
	"agents.sandbox.open_files":         "8192",
	"agents.sandbox.warm":               "30m",
	"agents.sandbox.lifetime":           "24h",
	"agents.sandbox.tool_timeout":       "10m",
	"agents.sandbox.setup":              "make deps",
	"agents.sandbox.setup_timeout":      "10m",
	"agents.sandbox.env":                "{TZ: Europe/Berlin}",
	"client.server":                     "http://127.0.0.1:7070",
	"sandbox.images.docker_config":      "/root/.docker",
	"sandbox.images.platform":           "linux/amd64",
	"sandbox.images.insecure":           "registry.lan:5000",
	"sandbox.images.folders":            "/srv/images",
}

func sample(f field) string {
	if text := f.tag.Get("default"); text != "" {
		return text
	}
	return samples[f.path]
}

// wrap breaks text into lines of at most width bytes.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		switch {
		case line == "":
			line = word
		case len(line)+1+len(word) > width:
			lines, line = append(lines, line), word
		default:
			line += " " + word
		}
	}
	if line != "" {
		lines = append(lines, line)
	}
	return lines
}
