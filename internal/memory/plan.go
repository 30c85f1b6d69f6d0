package memory

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// Bounds of deletions at the platform: a file must be found missing again after
// this time, and one pass deletes at most a quarter of the files, within these
// limits.
const (
	deleteAfter  = 30 * time.Second
	deleteAtMost = 50
	deleteAlways = 8
)

// facts are what a plan is made from.
type facts struct {
	known   map[string]Known // after settle
	local   map[string]File
	partial bool // local may lack files that are there
	remote  map[string]Entry
	refused map[string]string    // the hash that the platform would not take
	missing map[string]time.Time // when a file was first found missing
}

// rules say how a pass goes.
type rules struct {
	readOnly bool // the folder follows the store, whatever happened to it
	final    bool // the last pass: what is missing is deleted now
	flush    bool // only what was written here is sent
}

// steps are what has to be done, in this order.
type steps struct {
	agreed   map[string]Known // noted without doing anything; zero: forgotten
	missing  map[string]time.Time
	removes  []removal
	deletes  []deletion
	pulls    []pull
	uploads  []upload
	held     int // deletions beyond the limit of one pass
	warnings []Warning
}

type (
	removal  struct{ path, was string }
	deletion struct{ path, id, was string }
	pull     struct {
		entry Entry
		was   string // what may be overwritten; "" nothing
	}
	upload struct {
		path, sha string
		id, was   string // "" creates
	}
)

// Warning is something about one path that people should know.
type Warning struct {
	Path string
	Text string
	Lost bool // a local edit gave way to the platform's version
	of   string
}

// settle notes uploads whose answer was lost and that arrived all the same: the
// store holds exactly what was sent (contract §12.27). It returns what changed.
func settle(known map[string]Known, remote map[string]Entry) map[string]Known {
	changed := map[string]Known{}
	for path, k := range known {
		if k.Sent == "" {
			continue
		}
		if e, ok := remote[path]; ok && e.SHA256 == k.Sent {
			k.SHA256 = k.Sent
		}
		k.Sent = ""
		changed[path] = k
	}
	return changed
}

// plan decides what to do. It is a pure function.
func plan(now time.Time, f facts, r rules) steps {
	p := &planner{facts: f, rules: r, now: now, out: steps{agreed: map[string]Known{}, missing: map[string]time.Time{}}}
	for _, path := range paths(f) {
		if !reserved(path) {
			p.one(path)
		}
	}
	p.limitDeletes()
	p.dropOverlaps()
	return p.out
}

func paths(f facts) []string {
	all := slices.Collect(maps.Keys(f.remote))
	all = slices.AppendSeq(all, maps.Keys(f.local))
	all = slices.AppendSeq(all, maps.Keys(f.known))
	slices.Sort(all)
	return slices.Compact(all)
}

type planner struct {
	facts
	rules
	now time.Time
	out steps
}

// one decides about one path.
func (p *planner) one(path string) {
	base := p.known[path].SHA256
	file, here := p.local[path]
	entry, there := p.remote[path]
	switch {
	case here && there && file.SHA256 == entry.SHA256 && file.Problem == "":
		if base != entry.SHA256 {
			p.out.agreed[path] = Known{SHA256: entry.SHA256}
		}
	case here && there:
		p.both(path, file, entry, base)
	case here:
		p.onlyHere(path, file, base)
	case there:
		p.onlyThere(path, entry, base)
	case !p.partial:
		p.out.agreed[path] = Known{} // gone on both sides
	}
}

// both decides where file and entry differ.
func (p *planner) both(path string, file File, entry Entry, base string) {
	edited, moved := file.SHA256 != base, entry.SHA256 != base
	switch {
	case p.readOnly:
		p.pull(entry, file.SHA256)
	case edited && moved:
		text := "it was changed both here and at the platform; the platform's version is kept"
		if p.flush {
			text = "it was changed both here and at the platform, and is not sent"
		}
		p.warn(path, entry.SHA256, text, true)
		p.pull(entry, file.SHA256)
	case moved:
		p.pull(entry, file.SHA256)
	default:
		p.upload(upload{path: path, sha: file.SHA256, id: entry.ID, was: base}, file)
	}
}

// onlyHere decides about a file without an entry.
func (p *planner) onlyHere(path string, file File, base string) {
	if p.readOnly || base != "" && file.SHA256 == base {
		if !p.flush {
			p.out.removes = append(p.out.removes, removal{path, file.SHA256})
		}
		return
	}
	if base != "" {
		p.warn(path, file.SHA256, "it was deleted at the platform and changed here; it is created again", false)
	}
	p.upload(upload{path: path, sha: file.SHA256}, file)
}

// onlyThere decides about an entry without a file. One that was here and is
// unchanged was deleted here; but whoever cannot see everything deletes nothing.
func (p *planner) onlyThere(path string, entry Entry, base string) {
	switch {
	case p.flush, p.partial && base != "":
	case base == "", p.readOnly:
		p.pull(entry, "")
	case entry.SHA256 != base:
		p.warn(path, entry.SHA256, "it was deleted here and changed at the platform; the platform's version is restored", false)
		p.pull(entry, "")
	default:
		since, ok := p.facts.missing[path]
		if !ok {
			since = p.now
		}
		p.out.missing[path] = since
		if p.final || p.now.Sub(since) >= deleteAfter {
			p.out.deletes = append(p.out.deletes, deletion{path, entry.ID, base})
		}
	}
}

func (p *planner) pull(e Entry, was string) {
	if !p.flush {
		p.out.pulls = append(p.out.pulls, pull{e, was})
	}
}

func (p *planner) upload(u upload, file File) {
	switch {
	case file.Problem != "":
		p.warn(u.path, u.sha, "it is not kept: "+file.Problem, false)
	case p.refused[u.path] != u.sha:
		p.out.uploads = append(p.out.uploads, u)
	}
}

// warn notes a warning; of tells apart what is worth another one.
func (p *planner) warn(path, of, text string, lost bool) {
	p.out.warnings = append(p.out.warnings, Warning{Path: path, Text: text, Lost: lost, of: of})
}

func (p *planner) limitDeletes() {
	n := 0
	for _, k := range p.known {
		if k.SHA256 != "" {
			n++
		}
	}
	limit := max(deleteAlways, min(deleteAtMost, n/4))
	if len(p.out.deletes) > limit {
		p.out.held = len(p.out.deletes) - limit
		p.out.deletes = p.out.deletes[:limit]
	}
}

// dropOverlaps leaves out new files at paths that the store cannot have yet: no
// memory may lie above or below another. They get their turn when the other one
// is gone.
func (p *planner) dropOverlaps() {
	taken := map[string]bool{}  // entries
	parent := map[string]bool{} // what lies above entries
	for path := range p.remote {
		taken[path] = true
		for up := above(path); up != ""; up = above(up) {
			parent[up] = true
		}
	}
	overlaps := func(path string) bool {
		if parent[path] {
			return true
		}
		for up := above(path); up != ""; up = above(up) {
			if taken[up] {
				return true
			}
		}
		return false
	}
	p.out.uploads = slices.DeleteFunc(p.out.uploads, func(u upload) bool {
		if u.id != "" || !overlaps(u.path) {
			return false
		}
		p.warn(u.path, u.sha, "it is not sent yet: the platform has a memory above or below it", false)
		return true
	})
}

// above is the folder of a path, "" for the root.
func above(path string) string { return path[:max(strings.LastIndexByte(path, '/'), 0)] }
