//go:build linux

package server

import (
	"maps"
	"slices"
	"strings"
)

// merge lays environments over each other, the later ones on top. Variables
// that no process could take, and every ANTHROPIC_* (contract §5.1), are left
// out.
func merge(layers ...map[string]string) map[string]string {
	env := map[string]string{}
	for _, layer := range layers {
		for k, v := range layer {
			if k == "" || strings.ContainsAny(k, "=\x00") || strings.Contains(v, "\x00") ||
				strings.HasPrefix(strings.ToUpper(k), "ANTHROPIC_") {
				continue
			}
			env[k] = v
		}
	}
	return env
}

// list returns env in the form that processes take, sorted.
func list(env map[string]string) []string {
	out := make([]string, 0, len(env))
	for _, k := range slices.Sorted(maps.Keys(env)) {
		out = append(out, k+"="+env[k])
	}
	return out
}

// standard is the environment that every command has.
func standard(home, user string) map[string]string {
	return map[string]string{
		"HOME":    home,
		"USER":    user,
		"LOGNAME": user,
		"SHELL":   "/bin/bash",
		"LANG":    "C.UTF-8",
		"PATH":    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	}
}
