package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// output writes for people on a terminal and for programs in a pipe.
type output struct {
	out, err io.Writer
	json     bool
	colour   bool
	now      func() time.Time
}

// isTerminal reports whether w is a terminal.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// watched is an output whose end is noticed: the first write that fails tells
// broken.
type watched struct {
	io.Writer
	broken func()
}

func (w *watched) Write(b []byte) (int, error) {
	n, err := w.Writer.Write(b)
	if err != nil {
		w.broken()
	}
	return n, err
}

// style is an SGR code.
type style string

const (
	bold   style = "1"
	dim    style = "2"
	red    style = "31"
	green  style = "32"
	yellow style = "33"
	cyan   style = "36"
)

// paint colours s when colours are wanted.
func (o *output) paint(st style, s string) string {
	if !o.colour || s == "" {
		return s
	}
	return "\x1b[" + string(st) + "m" + s + "\x1b[0m"
}

func (o *output) line(format string, args ...any) {
	fmt.Fprintf(o.out, format+"\n", args...)
}

// progress tells a person about a slow step, on standard error.
func (o *output) progress(format string, args ...any) {
	fmt.Fprintln(o.err, o.paint(dim, fmt.Sprintf(format, args...)))
}

// value writes v as indented JSON.
func (o *output) value(v any) error {
	enc := json.NewEncoder(o.out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// cell is a table cell with an optional colour.
type cell struct {
	text string
	st   style
}

// table writes rows under headings in aligned columns.
func (o *output) table(headings []string, rows [][]cell) {
	widths := make([]int, len(headings))
	for i, h := range headings {
		widths[i] = utf8.RuneCountInString(h)
	}
	for _, row := range rows {
		for i, c := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	write := func(i int, text string, st style) {
		pad := ""
		if i < len(widths)-1 {
			pad = strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text)+2)
		}
		if st != "" {
			text = o.paint(st, text)
		}
		fmt.Fprint(o.out, text, pad)
	}
	for i, h := range headings {
		write(i, strings.ToUpper(h), dim)
	}
	fmt.Fprintln(o.out)
	for _, row := range rows {
		for i, c := range row {
			write(i, c.text, c.st)
		}
		fmt.Fprintln(o.out)
	}
}

// plain makes text from a sandbox or from the platform safe for a terminal: no
// escape sequences, no other controls, one line, at most n runes.
func plain(s string, n int) string {
	var b strings.Builder
	count := 0
	for _, r := range s {
		if count == n {
			b.WriteRune('…')
			break
		}
		switch {
		case r == '\n' || r == '\t':
			r = ' '
		case r == utf8.RuneError, unicode.IsControl(r), unicode.Is(unicode.Cf, r):
			continue
		}
		b.WriteRune(r)
		count++
	}
	return strings.TrimRight(b.String(), " ")
}

// ago is a short relative time.
func (o *output) ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := o.now().Sub(t)
	switch {
	case d < time.Second:
		return "now"
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	}
	return fmt.Sprintf("%dd ago", int(d.Hours()/24))
}

func took(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}
