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

	"github.com/berth-dev/berth/internal/session"
)

// SkillVersion resolves a version; "" and latest are the newest. The name is a
// single safe path element.
func (p *platform) SkillVersion(ctx context.Context, s session.Skill) (session.SkillVersion, error) {
	if s.ID == "" {
		return session.SkillVersion{}, errors.New("read skill: it has no id")
	}
	answer, err := p.conn.do(ctx, "read skill "+s.ID, p.conn.again(), func(ctx context.Context, opts ...option.RequestOption) error {
		_, err := p.conn.api.Beta.Skills.Versions.Get(ctx, cmp.Or(s.Version, "latest"),
			anthropic.BetaSkillVersionGetParams{SkillID: s.ID}, opts...)
		return err
	})
	if err != nil {
		return session.SkillVersion{}, err
	}
	var version anthropic.BetaSkillVersion
	if err := json.Unmarshal(answer, &version); err != nil {
		return session.SkillVersion{}, fmt.Errorf("decode version of skill %s: %w", s.ID, err)
	}
	if version.ID == "" {
		return session.SkillVersion{}, fmt.Errorf("decode version of skill %s: it has no id", s.ID)
	}
	return session.SkillVersion{ID: version.ID, Name: folder(version.Name, s.ID)}, nil
}

// SkillArchive opens the archive of a concrete version.
func (p *platform) SkillArchive(ctx context.Context, skill, version string) (io.ReadCloser, error) {
	l, err := p.conn.open(ctx, "download skill "+skill, p.conn.again(), func(ctx context.Context, opts ...option.RequestOption) error {
		_, err := p.conn.api.Beta.Skills.Versions.Download(ctx, version, anthropic.BetaSkillVersionDownloadParams{SkillID: skill}, opts...)
		return err
	})
	if err != nil {
		return nil, err
	}
	if l.res.ContentLength > session.MaxSkillArchive {
		l.Close()
		return nil, fmt.Errorf("download skill %s: %d bytes: %w", skill, l.res.ContentLength, errTooLarge)
	}
	return body{&bounded{from: l, left: session.MaxSkillArchive}, l}, nil
}

// folder reduces a skill's name to one path element; fallback where nothing
// remains.
func folder(name, fallback string) string {
	for _, n := range []string{name, fallback} {
		n = path.Base(strings.TrimSpace(strings.ReplaceAll(n, `\`, "/")))
		if n != "/" && !strings.HasPrefix(n, ".") && !strings.ContainsRune(n, 0) {
			return n
		}
	}
	return "skill"
}
