package config

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/berth-dev/berth/internal/fault"
)

// Problems is the error of Load and Validate: everything that is wrong, at once.
// Each is an Invalid fault, found by errors.As.
type Problems []Problem

// Problem is one thing that is wrong. Line is 0 when it is not in a file.
type Problem struct {
	*fault.Error
	File    string
	Line    int // from 1
	Column  int // from 1
	Excerpt string
}

// Error lists the problems, each with its place and the line it is in.
func (p Problems) Error() string {
	var b strings.Builder
	for i, one := range p {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(one.text())
	}
	return b.String()
}

// Unwrap returns the faults.
func (p Problems) Unwrap() []error {
	out := make([]error, len(p))
	for i, one := range p {
		out[i] = one.Error
	}
	return out
}

// err returns nil when there is no problem.
func (p Problems) err() error {
	if len(p) == 0 {
		return nil
	}
	return p
}

func (p Problem) text() string {
	s := p.Error.Error()
	if p.Line > 0 {
		s = fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Column, s)
	}
	if p.Excerpt == "" {
		return s
	}
	gutter := fmt.Sprintf("%5d | ", p.Line)
	return s + "\n" + gutter + p.Excerpt + "\n" + strings.Repeat(" ", len(gutter)-2) + "| " +
		strings.Repeat(" ", max(p.Column-1, 0)) + "^"
}

func invalid(field, format string, args ...any) *fault.Error {
	return fault.New(fault.Invalid, format, args...).WithField(field)
}

// Secrets that someone wrote into the file must not reach a log by way of the
// excerpt.
var (
	secretMember = regexp.MustCompile(`(?i)((?:key|token|secret|password)s?["']?\s*:\s*)("[^"]*"?|'[^']*'?|[^\s{\[,}#"'][^,}#]*)`)
	secretToken  = regexp.MustCompile(`(sk-ant-|whsec_|berth_)[^\s"',}\]]+`)
	longWord     = regexp.MustCompile(`[A-Za-z0-9+/=_-]{12,}`)
)

// excerpt returns one line of the source without anything secret. wary hides
// every long word as well, for a source that is not understood.
func excerpt(source []byte, line int, wary bool) string {
	lines := strings.Split(string(source), "\n")
	if line < 1 || line > len(lines) {
		return ""
	}
	s := strings.TrimRight(strings.ReplaceAll(lines[line-1], "\t", " "), "\r ")
	s = secretMember.ReplaceAllString(s, "${1}"+redacted)
	s = secretToken.ReplaceAllString(s, redacted)
	if wary {
		s = longWord.ReplaceAllString(s, redacted)
	}
	const most = 160
	if r := []rune(s); len(r) > most {
		s = string(r[:most]) + "…"
	}
	return s
}
