package conformance

import (
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// signs are the cells of the matrix.
var signs = map[Verdict]string{Passes: "✓", Fails: "✗", Beyond: "○", Skipped: "–", Broken: "?", "": ""}

// rows are the cases of the report and what stands for all of them.
func (r *Report) rows() []Case {
	rows := slices.Clone(r.Cases)
	for _, of := range r.Results {
		if _, ok := of[pollsCase.Name]; ok {
			return append(rows, pollsCase)
		}
	}
	return rows
}

// Markdown writes the matrix, and below it what each subject missed.
func (r *Report) Markdown(w io.Writer) error {
	var b strings.Builder
	b.WriteString("| case | what must hold | contract |")
	for _, s := range r.Subjects {
		fmt.Fprintf(&b, " %s |", s.Name)
	}
	b.WriteString("\n| --- | --- | --- |" + strings.Repeat(" :-: |", len(r.Subjects)) + "\n")
	for _, c := range r.rows() {
		fmt.Fprintf(&b, "| %s | %s | %s |", c.Name, cell(c.Says), c.Cites)
		for _, s := range r.Subjects {
			fmt.Fprintf(&b, " %s |", signs[r.Results[s.Name][c.Name].Verdict])
		}
		b.WriteString("\n")
	}
	b.WriteString("| **all** | passed / failed / beyond the contract / not claimed | |")
	for _, s := range r.Subjects {
		n := r.count(s.Name)
		fmt.Fprintf(&b, " %d / %d / %d / %d |", n[Passes], n[Fails]+n[Broken], n[Beyond], n[Skipped])
	}
	b.WriteString("\n")
	for _, s := range r.Subjects {
		fmt.Fprintf(&b, "\n**%s**: %s.", s.Name, s.Version)
		if missed := r.missed(s.Name); len(missed) > 0 {
			b.WriteString(" What it missed:\n\n" + strings.Join(missed, "\n"))
		} else {
			b.WriteString(" It missed nothing.")
		}
		b.WriteString("\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *Report) count(subject string) map[Verdict]int {
	n := map[Verdict]int{}
	for _, c := range r.rows() {
		n[r.Results[subject][c.Name].Verdict]++
	}
	return n
}

// missed lists what a subject did not meet.
func (r *Report) missed(subject string) (lines []string) {
	for _, c := range r.rows() {
		res := r.Results[subject][c.Name]
		switch {
		case res.Verdict == Broken:
			lines = append(lines, fmt.Sprintf("- ? %s: %s", c.Name, cell(res.Why)))
		case len(res.Breaches) > 0:
			b := res.Breaches[0]
			if i := slices.IndexFunc(res.Breaches, func(b Breach) bool { return b.Beyond == "" }); i >= 0 {
				b = res.Breaches[i]
			}
			line := fmt.Sprintf("- %s %s (%s): %s", signs[res.Verdict], c.Name, b.Check, cell(unnamed(b.What)))
			if b.Beyond != "" {
				line += ". Beyond the contract: " + cell(b.Beyond)
			}
			lines = append(lines, line)
		}
	}
	return lines
}

// Text writes the matrix for a terminal.
func (r *Report) Text(w io.Writer) error {
	var b strings.Builder
	width := 0
	for _, c := range r.rows() {
		width = max(width, len(c.Name))
	}
	for i, s := range r.Subjects {
		fmt.Fprintf(&b, "%s%*s %s  %s\n", strings.Repeat(" ", width), 2*i+1, "", s.Name, s.Version)
	}
	for _, c := range r.rows() {
		fmt.Fprintf(&b, "%-*s ", width, c.Name)
		for _, s := range r.Subjects {
			fmt.Fprintf(&b, " %s", signs[r.Results[s.Name][c.Name].Verdict])
		}
		b.WriteString("\n")
	}
	for _, s := range r.Subjects {
		n := r.count(s.Name)
		fmt.Fprintf(&b, "\n%s: %d passed, %d failed, %d missed only what goes beyond the contract, %d not claimed\n",
			s.Name, n[Passes], n[Fails]+n[Broken], n[Beyond], n[Skipped])
		for _, line := range r.missed(s.Name) {
			b.WriteString("  " + line + "\n")
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// cell bounds a text and makes it fit into a table.
func cell(s string) string {
	const most = 240
	s = strings.ReplaceAll(strings.Join(strings.Fields(s), " "), "|", `\|`)
	if r := []rune(s); len(r) > most {
		s = string(r[:most]) + "…"
	}
	return s
}

var ids = regexp.MustCompile(`\b(sevt|work|sesn|case|log)[_-][0-9A-Za-z]{6,}`)

// unnamed takes the ids out, which differ from run to run.
func unnamed(s string) string { return ids.ReplaceAllString(s, "$1") }
