//go:build linux

package server

import (
	"fmt"
	"path"
	"strings"
)

// Shares are folders beside the workdir that the file tools may reach. The mount
// keeps the agent from writing to a read-only one; the tools know it only to say
// so in words (contract §5.2).
type Shares []string // rw:PATH or ro:PATH

// String implements flag.Value.
func (s *Shares) String() string { return strings.Join(*s, " ") }

// Set implements flag.Value.
func (s *Shares) Set(text string) error {
	mode, at, ok := strings.Cut(text, ":")
	if !ok || mode != "rw" && mode != "ro" || !path.IsAbs(at) {
		return fmt.Errorf("%q is not rw:PATH or ro:PATH", text)
	}
	*s = append(*s, text)
	return nil
}

// args is the command line that Set reads again.
func (s Shares) args() []string {
	out := make([]string, len(s))
	for i, share := range s {
		out[i] = "-share=" + share
	}
	return out
}

// paths returns all shares, or only the read-only ones.
func (s Shares) paths(readOnly bool) []string {
	var out []string
	for _, share := range s {
		if mode, at, _ := strings.Cut(share, ":"); !readOnly || mode == "ro" {
			out = append(out, at)
		}
	}
	return out
}
