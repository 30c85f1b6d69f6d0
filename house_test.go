package berth_test

import (
	"os"
	"testing"
)

// The plan of the house (ARCHITECTURE.md, "Rings"). Imports point inwards only:
// a room may use rooms of its own ring and of the rings above it in this list.
// To add a package, find its ring; to break a rule, argue with its reason.
var house = plan{
	module: "github.com/berth-dev/berth",
	rings: []ring{
		{
			name: "words",
			why:  "words are what everybody means the same by; they depend on nobody's way of doing things",
			rooms: []string{
				"internal/fault", "internal/event", "internal/tool", "internal/sandbox",
			},
		},
		{
			name: "workers",
			why:  "workers decide; they ask through interfaces of their own, so that they can be tested without a network, a disk or a kernel",
			rooms: []string{
				"internal/session", "internal/memory", "internal/intake", "internal/guest",
			},
		},
		{
			name:  "adapters",
			why:   "each adapter wraps one thing of the outside world and can be replaced alone",
			apart: "adapters that know each other cannot be replaced one by one; internal/app connects them",
			rooms: []string{
				"internal/claude", "internal/claude/local", "internal/store", "internal/vault", "internal/access",
				"internal/api", "internal/sandbox/linux", "internal/telemetry", "internal/crash", "internal/skill",
			},
		},
		{
			name:  "plan",
			why:   "the plan knows every room, so no room may know the plan",
			rooms: []string{"internal/config", "internal/app", "internal/cli", "conformance", "cmd/berth"},
		},
		{
			name:  "tests",
			why:   "what only tests need is not part of the program",
			rooms: []string{"e2e", "bench", "conformance/gosdk", "internal/testbin", "."},
		},
	},
	imports: []importRule{
		{
			path:  "github.com/anthropics/anthropic-sdk-go",
			rooms: []string{"internal/claude", "internal/guest", "conformance/gosdk"},
			tests: []string{"internal/claude/local", "e2e", "bench"},
			why: "the SDK's surface moves quickly: one door to the platform, and one to its tools inside the sandbox; " +
				"the local platform is the other side of the contract and must not share its code; " +
				"conformance/gosdk is the SDK's own worker, which the kit judges beside Berth",
		},
		{
			path:  "github.com/berth-dev/berth/internal/claude/local",
			rooms: []string{"internal/app", "internal/cli", "conformance"},
			tests: []string{"internal/claude", "e2e", "bench"},
			why:   "a production room must never depend on the stand-in for the platform",
		},
		{
			path:  "database/sql",
			rooms: []string{"internal/store"},
			why:   "only the store knows SQL, so that another database is one package's affair",
		},
		{
			path:  "modernc.org/sqlite",
			rooms: []string{"internal/store"},
			why:   "only the store knows which database it is",
		},
		{
			path:  "gvisor.dev/gvisor",
			rooms: []string{"cmd/berth"},
			why:   "every other package builds, tests and cross-compiles in seconds and without Linux",
		},
		{
			path:  "github.com/google/go-containerregistry",
			rooms: []string{"internal/sandbox/linux"},
			why:   "images are one backend's affair; everybody else knows them by their references",
		},
		{
			path:  "github.com/berth-dev/berth/internal/sandbox/linux/image",
			rooms: []string{"internal/sandbox/linux", "internal/app"},
			why:   "other backends have other images",
		},
		{
			path:  "github.com/danielgtaylor/huma",
			rooms: []string{"internal/api"},
			why:   "handlers are plain functions: leaving the framework must stay one package's work",
		},
	},
	calls: []callRule{
		{
			names: []string{"os.Getenv", "os.LookupEnv", "os.Environ"},
			why:   "only internal/config reads the environment: what the program was told is in one place, documented and checked",
			allow: map[string]string{
				"internal/config":   "this is the place",
				"conformance/gosdk": "the worker of the SDK is told by the environment, as its documentation says, and is no part of the program",
			},
		},
		{
			names: []string{"time.Sleep"},
			tests: true,
			why:   "wait on something: a channel, a timer in a select, synctest; a sleep is either too short or too long",
		},
		{
			names: []string{"panic"},
			why:   "panics are for mistakes of the programmer; everything else is an error that somebody handles",
			allow: map[string]string{
				"internal/api/api.go":               "hands http.ErrAbortHandler on to net/http, which it belongs to",
				"internal/cli/cli.go":               "the grammar of the command line is wrong: no command can run",
				"internal/config/fields.go":         "a struct tag of the configuration is wrong: no test of the package passes",
				"internal/config/load.go":           "a struct tag of the configuration is wrong: no test of the package passes",
				"internal/session/actor.go":         "an effect that the closed set does not have is a programmer's mistake",
				"internal/claude/local/faults.go":   "cuts a connection on purpose, in the way net/http offers",
				"internal/claude/local/kernel.go":   "crypto/rand never fails on supported systems",
				"internal/claude/local/scenario.go": "the embedded scenarios are part of the program, and tests load all of them",
				"internal/claude/local/scripted.go": "a scenario in the options is a programmer's mistake: files are checked before",
			},
		},
	},
	pure: pureRule{
		why: "what a session does next is a function of its state and one input: time and chance come in, effects go out",
		files: []string{
			"internal/memory/plan.go", "internal/memory/path.go",
			"internal/session/input.go", "internal/session/machine.go", "internal/session/observe.go", "internal/session/read.go",
			"internal/session/result.go", "internal/session/route.go", "internal/session/state.go", "internal/session/waiting.go", "internal/session/watch.go",
		},
		imports: []string{"context", "io", "log/slog", "math/rand", "math/rand/v2", "net", "os", "sync"},
		names:   []string{"time.Now", "time.Since", "time.Until", "time.After", "time.AfterFunc", "time.NewTimer", "time.NewTicker"},
	},
	backends: "internal/sandbox",
	suite:    "sandboxtest.Run",
	records:  "docs/adr",
	grabBags: []string{"util", "utils", "common", "helper", "helpers", "model", "models", "type", "types", "misc", "shared", "base", "lib"},
	maxLines: 500,
}

// TestHouse holds the plan against the code.
func TestHouse(t *testing.T) {
	t.Parallel()
	problems, err := inspect(os.DirFS("."), house)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Error(p)
	}
}
