//go:build linux

// Package guesttest runs a real guest for the tests of other packages: the
// server of a sandbox in the test's own process, working in a folder of the
// test, reached over FIFOs as in production. Only the separate tool process
// and the other user are missing.
package guesttest

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"testing"

	"github.com/berth-dev/berth/internal/guest"
	"github.com/berth-dev/berth/internal/guest/server"
	"github.com/berth-dev/berth/internal/sandbox"
)

// Start runs a guest in a temporary folder until the test ends and returns a
// connection to it.
func Start(t testing.TB) sandbox.Guest {
	t.Helper()
	g, err := Run(t.TempDir(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	c, err := g.Attach(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Guest is a running guest that clients come to and go from.
type Guest struct {
	// Workdir is the folder that stands for /workspace.
	Workdir string

	pipes  Pipes
	in     *os.File
	server *server.Server
	served chan error

	mu      sync.Mutex
	clients []*guest.Client
}

// Run starts a guest that works in workdir and keeps its FIFOs in run. The
// caller must Close it.
func Run(workdir, run string) (*Guest, error) {
	pipes, err := NewPipes(run)
	if err != nil {
		return nil, err
	}
	in, out, err := pipes.Open()
	if err != nil {
		return nil, err
	}
	g := &Guest{Workdir: workdir, pipes: pipes, in: in, served: make(chan error, 1), server: server.New(server.Config{
		Workdir: workdir, UID: -1, GID: -1, Launch: server.InProcess(workdir), Log: slog.New(slog.DiscardHandler),
	})}
	go func() { g.served <- g.server.Serve(in, out) }() // Close waits for it
	return g, nil
}

// Attach connects anew. Earlier connections should have been closed.
func (g *Guest) Attach(ctx context.Context, env map[string]string) (*guest.Client, error) {
	c, err := g.pipes.Attach(ctx, guest.Options{Env: env})
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.clients = append(g.clients, c)
	return c, nil
}

// Close ends the clients and the guest and waits until nothing of them runs.
func (g *Guest) Close() {
	g.mu.Lock()
	clients := g.clients
	g.mu.Unlock()
	for _, c := range clients {
		_ = c.Close()
	}
	_ = g.in.Close()
	if err := <-g.served; err != nil && !errors.Is(err, os.ErrClosed) {
		slog.Error("guest broke", "err", err)
	}
	g.server.Close()
}
