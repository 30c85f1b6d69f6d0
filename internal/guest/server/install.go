//go:build linux

package server

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/berth-dev/berth/internal/guest/skill"
	"github.com/berth-dev/berth/internal/guest/wire"
	"github.com/berth-dev/berth/internal/sandbox"
)

// install unpacks a skill into the workdir. The archive is kept in a nameless
// file meanwhile, because a zip is read from its end.
func (b *toolbox) install(ctx context.Context, st *wire.Stream, r wire.Request) {
	t := wire.Trailer{}
	if err := b.unpack(ctx, st, r.Name); err != nil {
		t = wire.Trailer{Code: wire.Invalid, Message: err.Error()}
	}
	st.End(t)
}

func (b *toolbox) unpack(ctx context.Context, st *wire.Stream, name string) error {
	f, err := os.CreateTemp("", "skill-")
	if err != nil {
		return fmt.Errorf("keep archive: %w", err)
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return fmt.Errorf("keep archive: %w", err)
	}
	n, err := io.Copy(f, io.LimitReader(st.Reader(ctx), sandbox.MaxSkillArchive+1))
	if err != nil {
		return fmt.Errorf("keep archive: %w", err)
	}
	if n > sandbox.MaxSkillArchive {
		return fmt.Errorf("the archive exceeds %d bytes", sandbox.MaxSkillArchive)
	}
	root, err := os.OpenRoot(b.workdir)
	if err != nil {
		return fmt.Errorf("open workdir: %w", err)
	}
	defer root.Close()
	return skill.Install(ctx, root, name, f, n)
}
