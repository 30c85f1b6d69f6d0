package claude

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/option"

	"github.com/berth-dev/berth/internal/sandbox"
	"github.com/berth-dev/berth/internal/session"
)

// Skill resolves a version ("" and latest are the newest) and opens its archive
// by the concrete version id. The name is a single safe path element. Reading
// more than sandbox.MaxSkillArchive bytes fails.
func (p *platform) Skill(ctx context.Context, s session.Skill) (string, io.ReadCloser, error) {
	what := "read skill " + s.ID
	if s.ID == "" {
		return "", nil, errors.New("read skill: it has no id")
	}
	answer, err := p.conn.do(ctx, what, p.conn.again(), func(ctx context.Context, opts ...option.RequestOption) error {
		_, err := p.conn.api.Beta.Skills.Versions.Get(ctx, cmp.Or(s.Version, "latest"),
			anthropic.BetaSkillVersionGetParams{SkillID: s.ID}, opts...)
		return err
	})
	if err != nil {
		return "", nil, err
	}
	var version anthropic.BetaSkillVersion
	if err := json.Unmarshal(answer, &version); err != nil {
		return "", nil, fmt.Errorf("decode version of skill %s: %w", s.ID, err)
	}
	if version.ID == "" {
		return "", nil, fmt.Errorf("decode version of skill %s: it has no id", s.ID)
	}
	l, err := p.conn.open(ctx, "download skill "+s.ID, p.conn.again(), func(ctx context.Context, opts ...option.RequestOption) error {
		_, err := p.conn.api.Beta.Skills.Versions.Download(ctx, version.ID,
			anthropic.BetaSkillVersionDownloadParams{SkillID: s.ID}, opts...)
		return err
	})
	if err != nil {
		return "", nil, err
	}
	if l.res.ContentLength > sandbox.MaxSkillArchive {
		l.Close()
		return "", nil, fmt.Errorf("download skill %s: %d bytes: %w", s.ID, l.res.ContentLength, errTooLarge)
	}
	return folder(version.Name, s.ID), body{&bounded{from: l, left: sandbox.MaxSkillArchive}, l}, nil
}

// folder reduces a skill's name to one path element; fallback where nothing
// remains.
func folder(name, fallback string) string {
	for _, n := range []string{name, fallback} {
		n = path.Base(strings.TrimSpace(strings.ReplaceAll(n, `\`, "/")))
		if n != "." && n != ".." && n != "/" && !strings.ContainsRune(n, 0) {
			return n
		}
	}
	return "skill"
}
