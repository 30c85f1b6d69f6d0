// Command gosdk is the worker of the official Go SDK as a program: one session at
// a time, its tools run as plain processes in the working directory. It is a
// subject of the conformance kit.
package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/lib/environments"
	"github.com/anthropics/anthropic-sdk-go/v2/option"
)

// idle is how long the worker stays with a session after its turn: short, since
// it serves one at a time.
const idle = time.Second

func main() {
	if len(os.Args) == 2 && os.Args[1] == "version" {
		version()
		return
	}
	maxIdle := idle
	client := anthropic.NewClient(option.WithoutEnvironmentDefaults(), option.WithBaseURL(os.Getenv("ANTHROPIC_BASE_URL"))) //nolint:forbidigo // this is a program of its own
	w := environments.NewEnvironmentWorker(client, environments.EnvironmentWorkerOptions{
		EnvironmentID:      os.Getenv("ANTHROPIC_ENVIRONMENT_ID"),  //nolint:forbidigo // as above
		EnvironmentKey:     os.Getenv("ANTHROPIC_ENVIRONMENT_KEY"), //nolint:forbidigo // as above
		MaxIdle:            &maxIdle,
		MemorySyncInterval: environments.MinMemorySyncInterval,
		Logger:             slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := w.Run(ctx); err != nil && ctx.Err() == nil {
		slog.Error("the worker ended", "err", err)
		stop()
		os.Exit(1)
	}
}

// version prints the version of the SDK that this program was built with.
func version() {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return
	}
	for _, m := range info.Deps {
		if m.Path == "github.com/anthropics/anthropic-sdk-go/v2" {
			_, _ = os.Stdout.WriteString("github.com/anthropics/anthropic-sdk-go/v2 " + m.Version + "\n")
		}
	}
}
