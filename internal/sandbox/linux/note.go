//go:build linux

package linux

import (
	"context"
	"fmt"
	"strings"
	"syscall"

	"github.com/berth-dev/berth/internal/guest"
	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/tool"
)

// noted is the connection to a guest that adds to a result which limit of the
// sandbox was met: what a command says of it ("No space left on device",
// "Killed") tells neither whose limit it was nor how much it is.
type noted struct {
	*guest.Client
	box *Sandbox
}

// Call implements sandbox.Guest.
func (n *noted) Call(ctx context.Context, c tool.Call) (tool.Result, error) {
	before := n.box.memoryKills()
	r, err := n.Client.Call(ctx, c)
	if err != nil {
		return r, err
	}
	return annotate(r, n.box.notes(r, n.box.memoryKills() > before)), nil
}

// Recall implements sandbox.Guest.
func (n *noted) Recall(ctx context.Context, id string) (tool.Result, error) {
	r, err := n.Client.Recall(ctx, id)
	if err != nil {
		return r, err
	}
	return annotate(r, n.box.notes(r, false)), nil
}

// memoryKills counts processes that the kernel ended for lack of memory.
func (s *Sandbox) memoryKills() int {
	if s.backend.limits == nil {
		return 0
	}
	return s.backend.limits.oomKills(s.run)
}

// notes says which limits a result is about.
func (s *Sandbox) notes(r tool.Result, killed bool) []string {
	var out []string
	if killed {
		out = append(out, fmt.Sprintf("[the sandbox's memory limit of %s was reached; a process was ended]", size(s.record.Limits.MemoryBytes)))
	}
	if !saysFull(r) {
		return out
	}
	if used, limit, err := s.dir.diskUse(); err == nil && nearlyFull(used, limit) {
		out = append(out, fmt.Sprintf("[the sandbox's disk limit of %s is used up; remove files that are not needed]", size(limit)))
	}
	return out
}

// saysFull reports whether a result speaks of a full disk.
func saysFull(r tool.Result) bool {
	full := syscall.ENOSPC.Error()
	for _, b := range r.Content {
		if strings.Contains(strings.ToLower(b.Text), full) {
			return true
		}
	}
	return false
}

// nearlyFull allows for what a file system keeps for itself.
func nearlyFull(used, limit int64) bool { return limit > 0 && limit-used <= limit/10+8<<20 }

// annotate adds lines to a result, and leaves the guest's own value alone.
func annotate(r tool.Result, notes []string) tool.Result {
	if len(notes) == 0 {
		return r
	}
	content := append([]tool.Block(nil), r.Content...)
	r.Content = append(content, tool.Block{Type: "text", Text: strings.Join(notes, "\n")})
	return r
}

// size writes bytes in the largest binary unit that leaves a whole number.
func size(n int64) string {
	for i, unit := range []string{"GiB", "MiB", "KiB"} {
		if one := int64(1) << (30 - 10*i); n >= one && n%one == 0 {
			return fmt.Sprintf("%d%s", n/one, unit)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}

var _ sandbox.Guest = (*noted)(nil)
