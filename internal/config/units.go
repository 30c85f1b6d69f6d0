package config

import (
	"time"

	"github.com/berth-dev/berth/internal/sandbox"
)

// Bytes is a size in bytes, written as in 512MiB or 1.5GiB.
type Bytes = sandbox.Bytes

// ParseBytes reads a number and one of the units B, kB, MB, GB, TB, KiB, MiB,
// GiB, TiB. There is no default unit.
func ParseBytes(text string) (Bytes, error) { return sandbox.ParseBytes(text) }

// parseDuration reads a number with a unit that is not negative.
func parseDuration(text string) (time.Duration, error) {
	d, err := sandbox.ParseSpan(text)
	return time.Duration(d), err
}

// formatDuration writes a duration as a person would.
func formatDuration(d time.Duration) string { return sandbox.Span(d).String() }
