package sandbox

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Bytes is a size in bytes, written as in 512MiB or 1.5GiB.
type Bytes int64

var byteUnits = []struct {
	name string
	size float64
}{
	// Longest names first: every name ends in B.
	{"KiB", 1 << 10},
	{"MiB", 1 << 20},
	{"GiB", 1 << 30},
	{"TiB", 1 << 40},
	{"kB", 1e3},
	{"MB", 1e6},
	{"GB", 1e9},
	{"TB", 1e12},
	{"B", 1},
}

// ParseBytes reads a number and one of the units B, kB, MB, GB, TB, KiB, MiB,
// GiB, TiB. There is no default unit.
func ParseBytes(text string) (Bytes, error) {
	for _, u := range byteUnits {
		number, ok := strings.CutSuffix(text, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSuffix(number, " "), 64)
		if err != nil || n < 0 || n*u.size >= math.MaxInt64 || strings.ContainsAny(number, "xXpPnN_+") {
			break
		}
		return Bytes(math.Round(n * u.size)), nil
	}
	return 0, fmt.Errorf("%q is not a size; write a number and a unit, such as 512MiB or 2GiB", text)
}

// String writes the largest binary unit that leaves a whole number.
func (b Bytes) String() string {
	for i, name := range []string{"TiB", "GiB", "MiB", "KiB"} {
		size := Bytes(1) << (40 - 10*i)
		if b != 0 && b%size == 0 {
			return strconv.FormatInt(int64(b/size), 10) + name
		}
	}
	return strconv.FormatInt(int64(b), 10) + "B"
}

// MarshalText writes what ParseBytes reads.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText reads what ParseBytes reads.
func (b *Bytes) UnmarshalText(text []byte) (err error) {
	*b, err = ParseBytes(string(text))
	return err
}

// Span is a length of time, written as in 15s, 5m or 1h30m.
type Span time.Duration

// ParseSpan reads what time.ParseDuration reads, as long as it is not negative
// and has a unit.
func ParseSpan(text string) (Span, error) {
	d, err := time.ParseDuration(text)
	if err == nil && text == "0" {
		err = errors.New("no unit")
	}
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a duration; write a number and a unit, such as 15s, 5m or 1h30m", text)
	}
	return Span(d), nil
}

// String writes a span as a person would.
func (s Span) String() string {
	text := time.Duration(s).String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// MarshalText writes what ParseSpan reads.
func (s Span) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what ParseSpan reads.
func (s *Span) UnmarshalText(text []byte) (err error) {
	*s, err = ParseSpan(string(text))
	return err
}
