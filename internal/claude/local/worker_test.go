package local

import (
	"archive/zip"
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/lib/environments"
	"github.com/anthropics/anthropic-sdk-go/v2/option"
)

// These tests run the worker of the official SDK, unmodified, against the local
// platform, in a folder of the test. What passes between them is held against
// the published description.

// worker is a running SDK worker.
type worker struct {
	dir    string // its working directory
	cancel context.CancelFunc
	done   chan error
}

// startWorker starts a worker for the environment of w. It ends with the test
// at the latest.
func (w *world) startWorker() *worker {
	w.t.Helper()
	dir, err := filepath.EvalSymlinks(w.t.TempDir())
	if err != nil {
		w.t.Fatal(err)
	}
	return w.startWorkerIn(dir)
}

func (w *world) startWorkerIn(dir string) *worker {
	idle := 100 * time.Millisecond
	client := anthropic.NewClient(option.WithoutEnvironmentDefaults(), option.WithBaseURL(w.url))
	run := environments.NewEnvironmentWorker(client, environments.EnvironmentWorkerOptions{
		EnvironmentID: w.env, EnvironmentKey: w.envKey, WorkerID: "worker-1", Workdir: dir,
		MaxIdle: &idle, Logger: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(context.Background())
	k := &worker{dir: dir, cancel: cancel, done: make(chan error, 1)}
	go func() { k.done <- run.Run(ctx) }() // stop waits for it
	w.t.Cleanup(func() { k.stop(w.t) })
	return k
}

// stop ends the worker and waits for it. It may be called again.
func (k *worker) stop(t testing.TB) {
	k.cancel()
	if err, ok := <-k.done; ok && err != nil {
		t.Errorf("the worker ended with %v", err)
	}
	k.done = make(chan error)
	close(k.done)
}

// finished waits until the session's scenario has ended and its work item is
// released, and checks that the scenario met what it expects.
func (w *world) finished(session string) []logEvent {
	w.t.Helper()
	w.awaitServed("the end of the scenario", func() bool {
		r := w.srv.Scenario(session)
		return r.Done || len(r.Failures) > 0
	})
	w.played(session)
	if w.t.Failed() {
		w.t.FailNow()
	}
	all := w.awaitIdle(session, "end_turn")
	w.released(session, 1)
	return all
}

// released waits until the session's newest work item is stopped, and n in all
// have been made.
func (w *world) released(session string, n int) {
	w.t.Helper()
	w.awaitServed(fmt.Sprintf("%d released work items", n), func() bool {
		works := w.srv.Works(session)
		return len(works) == n && works[n-1].State == "stopped"
	})
}

// played checks that the session's scenario ran to its end as expected.
func (w *world) played(session string) {
	w.t.Helper()
	r := w.srv.Scenario(session)
	if len(r.Failures) > 0 || !r.Done {
		w.t.Errorf("scenario: done %v, failures %q", r.Done, r.Failures)
	}
}

// times counts the events of a type.
func times(all []logEvent, typ string) (n int) {
	for _, e := range all {
		if e.str("type") == typ {
			n++
		}
	}
	return n
}

// workerLease makes the worker beat about once a second; the clock of these
// tests stands still, so that no lease lapses unless a test says so.
const workerLease = 2 * time.Second

const stockScenario = `
name: stock tools
steps:
  - calls: [{tool: bash, input: {command: "echo hello; echo there >&2"}, expect: {text: "(?s)hello.*there", error: false}}]
  - calls: [{tool: write, input: {file_path: notes/a.txt, content: "one\ntwo\n"}, expect: {text: "wrote 8 bytes", error: false}}]
  - calls: [{tool: edit, input: {file_path: notes/a.txt, old_string: two, new_string: three}, expect: {error: false}}]
  - calls: [{tool: read, input: {file_path: notes/a.txt}, expect: {text: "^one\nthree\n$", error: false}}]
  - calls: [{tool: glob, input: {pattern: "**/*.txt"}, expect: {text: "a.txt", error: false}}]
  - calls: [{tool: grep, input: {pattern: thr.e}, expect: {text: "a.txt:2:three", error: false}}]
  - calls: [{tool: bash, input: {command: "(exit 3)"}, expect: {text: "exit code: 3", error: true}}]
  - calls:
      - {tool: bash, input: {command: "echo first"}, expect: {text: first}}
      - {tool: bash, input: {command: "echo second"}, expect: {text: second}}
      - {tool: bash, input: {command: "true"}, expect: {text: "no output", error: false}}
  - message: "Done."
`

func TestTheSDKWorkerServesTheStockTools(t *testing.T) {
	for _, style := range []StopReply{StopJSON, StopEmpty} {
		t.Run("stop answers "+string(style), func(t *testing.T) {
			w := newWorld(t, Options{LeaseTTL: workerLease, StopReply: style}, stockScenario)
			session := w.session("go")
			w.startWorker()
			all := w.finished(session)
			if calls, results := times(all, "agent.tool_use"), times(all, "user.tool_result"); calls != 10 || results != 10 {
				t.Errorf("%d calls and %d results, want 10 and 10", calls, results)
			}
		})
	}
}

func TestTheSDKWorkerUsesTheCredentialsThatTheContractSays(t *testing.T) {
	w := newWorld(t, Options{LeaseTTL: workerLease}, stockScenario)
	session := w.session("go")
	w.startWorker()
	w.finished(session)
	want := map[string]string{
		"poll": "environment key", "ack": "environment key",
		"heartbeat": "sessions token", "session.get": "sessions token", "stream": "sessions token",
		"events.list": "sessions token", "events.send": "sessions token", "stop": "sessions token",
	}
	seen := map[string]bool{}
	for _, r := range w.srv.Requests() {
		if r.Helper == "" {
			continue // the test's own
		}
		seen[r.Operation] = true
		if want[r.Operation] != r.Credential {
			t.Errorf("%s was called with %s, want %s", r.Operation, r.Credential, want[r.Operation])
		}
	}
	for op := range want {
		if !seen[op] && op != "stream" { // a stream is logged when it ends
			t.Errorf("%s was not called", op)
		}
	}
}

func TestTheSDKWorkerWaitsForAPerson(t *testing.T) {
	w := newWorld(t, Options{LeaseTTL: workerLease}, `
name: ask
steps:
  - calls: [{tool: bash, input: {command: "echo ran > allowed"}, permission: ask, person: {says: allow}, expect: {error: false}}]
  - calls: [{tool: bash, input: {command: "echo ran > denied"}, permission: ask, person: {says: deny, because: "not here"}, expect: {text: "not here", error: true}}]
`)
	session := w.session("go")
	k := w.startWorker()
	all := w.finished(session)
	if _, err := os.Stat(filepath.Join(k.dir, "allowed")); err != nil {
		t.Errorf("the allowed call did not run: %v", err)
	}
	if _, err := os.Stat(filepath.Join(k.dir, "denied")); err == nil {
		t.Error("the denied call ran")
	}
	if n := times(all, "user.tool_result"); n != 1 {
		t.Errorf("%d results by the worker, want 1", n)
	}
}

// started makes a named pipe in the worker's directory, and returns a function
// that blocks until a command has written to it.
func started(t *testing.T, dir string) func() {
	t.Helper()
	path := filepath.Join(dir, "started")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return func() {
		if _, err := os.ReadFile(path); err != nil {
			t.Error(err)
		}
	}
}

const longScenario = `
name: long
steps:
  - calls: [{tool: bash, input: {command: "echo > started; sleep 600"}, expect: {interrupted: true}}]
  - wait: message
  - calls: [{tool: bash, input: {command: "echo again"}, expect: {text: again}}]
`

func TestAnInterruptEndsWhatTheSDKWorkerRuns(t *testing.T) {
	w := newWorld(t, Options{LeaseTTL: workerLease}, longScenario)
	session := w.session("go")
	k := w.startWorker()
	started(t, k.dir)()
	w.say(session, `{"type":"user.interrupt"}`)
	w.awaitIdle(session, "end_turn")
	w.released(session, 1)
	if n := times(w.history(session), "user.tool_result"); n != 0 {
		t.Errorf("%d results for an interrupted call", n)
	}
}

func TestAnOperatorsStopReachesTheSDKWorkerByItsHeartbeat(t *testing.T) {
	w := newWorld(t, Options{LeaseTTL: workerLease}, `
name: stopped
steps: [{calls: [{tool: bash, input: {command: "echo > started; sleep 600"}}]}]
`)
	session := w.session("go")
	k := w.startWorker()
	started(t, k.dir)()
	work := w.srv.Works(session)[0].ID
	if state := w.want(200, "POST", w.work("/"+work+"/stop"), `{}`).str("state"); state != "stopping" {
		t.Errorf("after the operator's stop the item is %s, want stopping", state)
	}
	w.released(session, 1)
	if n := times(w.history(session), "session.status_terminated"); n != 0 {
		t.Error("the stop of a work item ended the session")
	}
}

func TestAMessageAfterTheSDKWorkerLeftMakesNewWork(t *testing.T) {
	w := newWorld(t, Options{LeaseTTL: workerLease}, `
name: twice
steps:
  - calls: [{tool: bash, input: {command: "echo one > kept"}, expect: {error: false}}]
  - wait: message
  - calls: [{tool: bash, input: {command: "cat kept"}, expect: {text: one}}]
`)
	session := w.session("go")
	w.startWorker()
	w.awaitIdle(session, "end_turn")
	w.released(session, 1) // it left by itself, after its short idle time
	w.say(session, message("and again"))
	w.released(session, 2)
	w.awaitIdle(session, "end_turn")
	w.played(session)
	if works := w.srv.Works(session); works[0].ID == works[1].ID {
		t.Error("the second item has the id of the first")
	}
}

func TestTheSDKWorkerInstallsSkills(t *testing.T) {
	w := newWorld(t, Options{LeaseTTL: workerLease}, `
name: skills
steps:
  - calls: [{tool: bash, input: {command: "cat skills/pdf-forms/fill.sh; ls skills; ls ../.."}, expect: {text: "(?s)fill it.*pdf-forms", not: escaped}}]
`)
	good, _, err := w.srv.SeedSkill(SkillSeed{Name: "pdf-forms", Description: "Fills forms.", Files: map[string]string{"fill.sh": "fill it\n"}})
	if err != nil {
		t.Fatal(err)
	}
	evil, _, err := w.srv.SeedSkill(SkillSeed{Name: "evil", Archive: zipOf(t, "evil/SKILL.md", "evil/../../../escaped")})
	if err != nil {
		t.Fatal(err)
	}
	w.want(200, "POST", "/v1/agents/"+w.agent, fmt.Sprintf(`{"skills":[{"type":"custom","skill_id":%q},{"type":"custom","skill_id":%q}]}`, good, evil))
	quiet := slog.Default()
	slog.SetDefault(slog.New(slog.DiscardHandler)) // where the SDK tells of the skill that it could not unpack
	t.Cleanup(func() { slog.SetDefault(quiet) })
	session := w.session("go")
	w.startWorker()
	w.finished(session)
}

// zipOf makes an archive with members of these names, however hostile.
func zipOf(t *testing.T, names ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	z := zip.NewWriter(&buf)
	for _, name := range names {
		if _, err := z.Create(name); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// mountUnder rewrites the mount paths of sessions on their way to the worker, so
// that memory is mounted in a folder of the test: /mnt/memory belongs to the
// host. The rest of the reply stays as the server wrote it.
func (w *world) mountUnder(dir string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.around = func(rw http.ResponseWriter, r *http.Request, next func(http.ResponseWriter)) {
		if r.Method != http.MethodGet || !strings.HasPrefix(r.URL.Path, "/v1/sessions/") || strings.Count(r.URL.Path, "/") != 3 {
			next(rw)
			return
		}
		rec := httptest.NewRecorder()
		next(rec)
		rw.Header().Set("Content-Type", rec.Header().Get("Content-Type"))
		rw.WriteHeader(rec.Code)
		_, _ = rw.Write(bytes.ReplaceAll(rec.Body.Bytes(), []byte("/mnt/memory/"), []byte(dir+"/"))) // the worker reports a lost reply itself
	}
}

func TestMemoryTravelsThroughTheSDKWorkerAndBack(t *testing.T) {
	mounts, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, Options{LeaseTTL: workerLease}, fmt.Sprintf(`
name: memory
steps:
  - calls: [{tool: bash, input: {command: "cd %[1]s && cat shared/a.md rules/r.md && echo changed > shared/a.md && echo new > shared/b.md && rm shared/c.md && echo no > rules/x.md"},
             expect: {text: "(?s)remembered.*the rule", error: false}}]
`, mounts))
	store := func(name, path, content string) string {
		id := w.want(200, "POST", "/v1/memory_stores", fmt.Sprintf(`{"name":%q}`, name)).id()
		w.remember("/v1/memory_stores/"+id, path, content)
		return id
	}
	shared, rules := store("Shared", "/a.md", "remembered\n"), store("Rules", "/r.md", "the rule\n")
	w.remember("/v1/memory_stores/"+shared, "/c.md", "to be removed")
	w.mountUnder(mounts)
	session := w.want(200, "POST", "/v1/sessions", fmt.Sprintf(`{"agent":%q,"environment_id":%q,"initial_events":[%s],"resources":[
		{"type":"memory_store","memory_store_id":%q},
		{"type":"memory_store","memory_store_id":%q,"access":"read_only"}]}`, w.agent, w.env, message("go"), shared, rules)).id()
	w.startWorker()
	w.finished(session)

	contents := func(store string) (all []string) {
		for _, i := range w.want(200, "GET", "/v1/memory_stores/"+store+"/memories?view=full", "").Body["data"].([]any) {
			m := i.(map[string]any)
			all = append(all, fmt.Sprintf("%s=%s", m["path"], m["content"]))
		}
		return all
	}
	if got, want := contents(shared), []string{"/a.md=changed\n", "/b.md=new\n"}; !slices.Equal(got, want) {
		t.Errorf("the shared store holds %q, want %q", got, want)
	}
	if got, want := contents(rules), []string{"/r.md=the rule\n"}; !slices.Equal(got, want) {
		t.Errorf("the read-only store holds %q, want %q", got, want)
	}
	by := w.want(200, "GET", "/v1/memory_stores/"+shared+"/memory_versions?session_id="+session, "").Body["data"].([]any)
	if len(by) != 3 { // changed, created, deleted
		t.Errorf("%d versions are the session's, want 3", len(by))
	}
}

func TestASessionsTokenOpensOnlyItsOwnMemory(t *testing.T) {
	w := newWorld(t, Options{})
	store := func(name string) string {
		return "/v1/memory_stores/" + w.want(200, "POST", "/v1/memory_stores", fmt.Sprintf(`{"name":%q}`, name)).id()
	}
	attached, readOnly, other := store("one"), store("two"), store("three")
	id := func(path string) string { return strings.TrimPrefix(path, "/v1/memory_stores/") }
	w.want(200, "POST", "/v1/sessions", fmt.Sprintf(`{"agent":%q,"environment_id":%q,"initial_events":[%s],"resources":[
		{"type":"memory_store","memory_store_id":%q},
		{"type":"memory_store","memory_store_id":%q,"access":"read_only"}]}`, w.agent, w.env, message("go"), id(attached), id(readOnly)))
	token := w.claim().token
	const body = `{"path":"/a","content":"x"}`
	made := w.want(200, "POST", attached+"/memories", body, token)
	version := w.want(200, "GET", attached+"/memory_versions/"+made.str("memory_version_id"), "", token)
	if version.path("created_by", "type") != "session_actor" {
		t.Errorf("created by %v", version.Body["created_by"])
	}
	w.want(403, "POST", attached+"/memory_versions/"+version.id()+"/redact", "", token)
	w.want(200, "GET", readOnly+"/memories", "", token)
	w.want(403, "POST", readOnly+"/memories", body, token)
	w.want(403, "GET", other+"/memories", "", token)
	w.want(403, "GET", "/v1/memory_stores", "", token)
	w.want(403, "DELETE", attached, "", token)
}

func TestTheSDKWorkerSurvivesLostResponses(t *testing.T) {
	for _, op := range []string{"ack", "events.send", "stop", "session.get", "events.list"} {
		t.Run(op, func(t *testing.T) {
			w := newWorld(t, Options{LeaseTTL: workerLease, AckIdempotent: true}, `
name: lost
steps:
  - calls: [{tool: bash, input: {command: "echo ran >> ran; echo ok"}, expect: {text: ok}}]
`)
			session := w.session("go")
			if err := w.srv.Inject(Fault{Kind: Drop, On: op, Session: session}); err != nil {
				t.Fatal(err)
			}
			k := w.startWorker()
			all := w.finished(session)
			if n := times(all, "user.tool_result"); n != 1 {
				t.Errorf("%d results, want 1", n)
			}
			if ran, err := os.ReadFile(filepath.Join(k.dir, "ran")); err != nil || string(ran) != "ran\n" {
				t.Errorf("the command ran %q (%v), want once", ran, err)
			}
			if n := w.srv.ClearFaults(); n != 0 {
				t.Errorf("the fault did not strike")
			}
		})
	}
}

func TestALostPollReplyIsHandedOutAgain(t *testing.T) {
	w := newWorld(t, Options{LeaseTTL: workerLease}, `
name: lost poll
steps: [{calls: [{tool: bash, input: {command: "echo ok"}, expect: {text: ok}}]}]
`)
	session := w.session("go")
	if err := w.srv.Inject(Fault{Kind: Drop, On: "poll"}); err != nil {
		t.Fatal(err)
	}
	w.startWorker()
	w.awaitServed("the lost poll", func() bool {
		return slices.ContainsFunc(w.srv.Requests(), func(r Request) bool { return r.Operation == "poll" })
	})
	w.clock.Advance(6 * time.Second) // past the five seconds after which an item is reclaimed
	w.finished(session)
}

func TestALostHeartbeatReplyCostsTheLeaseAndTheItemComesBack(t *testing.T) {
	w := newWorld(t, Options{LeaseTTL: workerLease}, `
name: lost beat
steps: [{calls: [{tool: bash, input: {command: "sleep 600"}}]}]
`)
	session := w.session("go")
	if err := w.srv.Inject(Fault{Kind: Drop, On: "heartbeat", Skip: 1}); err != nil {
		t.Fatal(err)
	}
	w.startWorker()
	lost := func(r Request) bool { return r.Operation == "heartbeat" && r.Status == 412 }
	// The SDK repeats the request with the token that the server has replaced,
	// and answers the running call with an error before it gives up.
	w.awaitServed("the 412", func() bool { return slices.ContainsFunc(w.srv.Requests(), lost) })
	w.clock.Advance(workerLease + time.Second)
	w.released(session, 1)
	if works := w.srv.Works(session); works[0].Claims != 2 {
		t.Errorf("the item was handed out %d times, want 2", works[0].Claims)
	}
	acks := 0
	for _, r := range w.srv.Requests() {
		switch r.Operation {
		case "ack":
			acks++
		case "stop":
			if acks < 2 {
				t.Error("the worker stopped an item whose lease it had lost")
			}
		}
	}
}
