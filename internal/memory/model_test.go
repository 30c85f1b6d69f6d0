package memory_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// TestNothingIsLostWhateverHappens plays an agent, other writers, lost requests
// and answers, crashes at any operation, and the passing of time against each
// other. In the end both sides agree, what only one side touched is as that side
// left it, and what was written once was sent once.
func TestNothingIsLostWhateverHappens(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		synctest.Test(t, func(*testing.T) { model(rt) })
	})
}

func model(rt *rapid.T) {
	w := newWorld()
	var (
		paths  = []string{"/a", "/b", "/d/x", "/d/y"}
		path   = rapid.SampledFrom(paths)
		here   = map[string]bool{}   // paths that the agent touched
		there  = map[string]bool{}   // paths that others touched after the beginning
		mine   = map[string]string{} // what the agent left
		theirs = map[string]string{} // what others left
		n      = 0
	)
	text := func(who string) string { n++; return fmt.Sprint(who, n) }
	for _, p := range append(paths, "/keep", "/keep2") {
		w.put(p, text("first"))
		theirs[p] = w.store[p].Content
	}
	ctx := context.Background()
	s := w.process(false)
	if err := s.Open(ctx); err != nil {
		rt.Fatal(err)
	}
	w.fate = func(op string) fate {
		if op == "list" || op == "fetch" {
			return rapid.SampledFrom([]fate{arrives, arrives, arrives, lost}).Draw(rt, op)
		}
		return rapid.SampledFrom([]fate{arrives, arrives, lost, unheard, unheard}).Draw(rt, op)
	}
	for range rapid.IntRange(1, 25).Draw(rt, "steps") {
		switch what := rapid.SampledFrom([]string{"edit", "edit", "remove", "others", "others delete", "sync", "sync", "crash", "flush", "finish", "later"}).Draw(rt, "what"); what {
		case "edit":
			p := path.Draw(rt, "path")
			w.files[p] = text("mine")
			here[p], mine[p] = true, w.files[p]
		case "remove":
			p := path.Draw(rt, "path")
			delete(w.files, p)
			here[p], mine[p] = true, ""
		case "others", "others delete":
			p, c := path.Draw(rt, "path"), ""
			if what == "others" {
				c = text("theirs")
			}
			w.put(p, c)
			there[p], theirs[p] = true, c
		case "sync":
			_ = s.Sync(ctx)
		case "flush":
			_ = s.Flush(ctx)
		case "finish":
			_ = s.Finish(ctx)
		case "crash":
			w.budget = rapid.IntRange(0, 12).Draw(rt, "operations until it dies")
			_ = s.Sync(ctx)
			s = w.process(false)
		case "later":
			w.now = w.now.Add(20 * time.Second)
		}
	}
	w.fate = nil
	s = w.process(false)
	if err := s.Open(ctx); err != nil {
		rt.Fatalf("Open: %v", err)
	}
	if err := s.Finish(ctx); err != nil {
		rt.Fatalf("Finish: %v", err)
	}
	if diff := cmp.Diff(w.contents(), w.files); diff != "" {
		rt.Fatalf("the sides differ (-platform +folder):\n%s", diff)
	}
	for _, p := range paths {
		got := w.files[p]
		switch {
		case !there[p] && here[p] && got != mine[p]:
			rt.Errorf("%s is %q; only the agent touched it and left %q", p, got, mine[p])
		case !here[p] && got != theirs[p]:
			rt.Errorf("%s is %q; only others touched it and left %q", p, got, theirs[p])
		case here[p] && there[p] && got != mine[p] && got != theirs[p]:
			rt.Errorf("%s is %q; the agent left %q and others %q", p, got, mine[p], theirs[p])
		}
		if !there[p] {
			for what, n := range w.applied {
				if n > 1 && what[:len(p)+1] == p+"=" {
					rt.Errorf("%s was sent %d times", what, n)
				}
			}
		}
	}
}
