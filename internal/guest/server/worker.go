//go:build linux

package server

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/berth-dev/berth/internal/guest/wire"
)

// Worker is a running tool process, or something that behaves like one.
type Worker struct {
	R io.Reader
	W io.Writer
	// Kill ends the worker, waits for its end and makes blocked reads and
	// writes return. It is idempotent. The worker may also end by itself;
	// then R ends.
	Kill func()
}

// Launch starts a worker that serves the wire protocol.
type Launch func() (Worker, error)

const workerHandshake = 20 * time.Second

// workers keeps one worker running: it is started when it is needed and again
// after its death. Safe for concurrent use.
type workers struct {
	launch Launch

	mu     sync.Mutex
	latest *start
	closed bool
	wg     sync.WaitGroup
}

// start is one attempt at starting a worker. The fields may be read after done
// is closed.
type start struct {
	cancel context.CancelFunc // of the handshake
	done   chan struct{}
	link   *wire.Conn
	err    error
}

// conn returns the connection to a living worker and starts one if there is
// none.
func (w *workers) conn(ctx context.Context) (*wire.Conn, error) {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return nil, fmt.Errorf("the guest is closing")
	}
	if w.latest == nil || w.latest.dead() {
		hello, cancel := context.WithTimeout(context.Background(), workerHandshake)
		w.latest = &start{cancel: cancel, done: make(chan struct{})}
		s := w.latest
		w.wg.Go(func() { w.begin(hello, s) })
	}
	s := w.latest
	w.mu.Unlock()
	select {
	case <-s.done:
		return s.link, s.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// dead reports whether the attempt failed or its worker has ended since.
func (s *start) dead() bool {
	select {
	case <-s.done:
		return s.err != nil || s.link.Err() != nil
	default:
		return false
	}
}

func (w *workers) begin(ctx context.Context, s *start) {
	defer close(s.done)
	defer s.cancel()
	p, err := w.launch()
	if err != nil {
		s.err = fmt.Errorf("start worker: %w", err)
		return
	}
	s.link, s.err = wire.Dial(ctx, p.R, p.W, killer(p.Kill), nil)
	if s.err == nil {
		w.wg.Go(func() {
			<-s.link.Done()
			_ = s.link.Close() // takes what is left of the process with it
		})
	}
}

type killer func()

func (k killer) Close() error { k(); return nil }

// recycle kills the worker behind a session. The next conn starts another.
func (w *workers) recycle(session *wire.Session) {
	w.mu.Lock()
	s := w.latest
	w.mu.Unlock()
	if s == nil || session == nil {
		return
	}
	select {
	case <-s.done:
		if s.err == nil && s.link.Session == session {
			_ = s.link.Close()
		}
	default:
	}
}

// close kills the worker and waits for its end.
func (w *workers) close() {
	w.mu.Lock()
	w.closed = true
	s := w.latest
	w.mu.Unlock()
	if s != nil {
		s.cancel()
		<-s.done
		if s.err == nil {
			_ = s.link.Close()
		}
	}
	w.wg.Wait()
}
