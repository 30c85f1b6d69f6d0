package local

import (
	"context"
	"fmt"
)

// The driver runs a session's turns one after the other, in one goroutine that
// lives as long as there is input.

// wakeSession starts the driver when the session has input and none runs.
// Called with s.mu.
func (s *Server) wakeSession(se *session) {
	if s.closed || se.driven || se.Status == statusTerminated || !se.hasInput() {
		return
	}
	se.driven = true
	s.wg.Go(func() { s.drive(se) })
}

func (s *Server) drive(se *session) {
	for {
		t, ctx := s.beginTurn(se)
		if t == nil {
			return
		}
		err := s.runBrain(ctx, t)
		if err == nil {
			_, err = t.Wait(ctx) // for calls that the brain left open
		}
		s.endTurn(t, err)
		t.cancel(nil)
	}
}

// runBrain runs the brain that the session asks for. A panic in it must not take
// the platform down, since a test's brain is a test's code.
func (s *Server) runBrain(ctx context.Context, t *Turn) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the brain panicked: %v", p)
		}
	}()
	brain := Brain(s.scripted)
	if s.opt.Brain != nil && t.Metadata()[scenarioKey] == "" {
		brain = s.opt.Brain
	}
	return brain.Run(ctx, t)
}

// beginTurn takes the input and makes the session running. The context ends with
// the turn. It returns nil, and the driver is over, when there is nothing to do.
func (s *Server) beginTurn(se *session) (*Turn, context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || se.deleted || se.Status == statusTerminated || !se.hasInput() {
		se.driven = false
		return nil, nil
	}
	t := &Turn{s: s, se: se}
	ctx, cancel := context.WithCancelCause(s.ctx)
	t.cancel = cancel
	if se.hungry {
		for _, e := range se.log.processed {
			if e.Type == "user.define_outcome" {
				t.input = []Event{e.public()} // the newest one
			}
		}
	}
	se.hungry = false
	t.input = append(t.input, s.consume(se)...)
	se.turn = t
	s.goRunning(se)
	return t, ctx
}

// endTurn makes the session idle, with the reason that fits, and does what the
// brain asked to be done afterwards.
func (s *Server) endTurn(t *Turn, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	se := t.se
	se.turn = nil
	if t.over == nil && !s.closed {
		t.over = ErrSessionOver // nothing more comes from this turn
		if err != nil {
			s.emitError(se, "unknown_error", err.Error(), "exhausted")
			t.reason = map[string]any{"type": "retries_exhausted"}
			s.settle(se, func(*call) bool { return true })
		}
		if t.reason == nil {
			t.reason = map[string]any{"type": "end_turn"}
		}
		s.idleThreads(se)
		s.goIdle(se, t.reason, t.details)
	}
	switch {
	case se.deleted:
	case t.after == archive:
		s.archiveSession(se)
	case t.after == remove:
		s.deleteSession(se)
	}
}

// idleThreads ends the turns of all child threads. Called with s.mu.
func (s *Server) idleThreads(se *session) {
	for _, id := range se.joined[1:] {
		if t := se.threads[id]; t.Status == statusRunning || t.waiting {
			s.idleThread(se, t, map[string]any{"type": "end_turn"})
		}
	}
}

// interrupt applies a processed user.interrupt: session-wide it settles every
// open call and ends the turn; for a thread it settles that thread's calls
// (contract §4.5). Called with s.mu.
func (s *Server) interrupt(se *session, threadID string) {
	if threadID != "" && threadID != se.joined[0] {
		s.settle(se, func(c *call) bool { return c.thread == threadID })
		s.idleThread(se, se.threads[threadID], map[string]any{"type": "end_turn"})
		s.afterAnswer(se)
		return
	}
	stuck := se.waiting
	busy := se.turn != nil && se.turn.over == nil
	s.endTurnEarly(se, ErrInterrupted)
	if stuck {
		s.wantWorker(se)
	}
	if busy || stuck {
		s.idleThreads(se)
		s.goIdle(se, map[string]any{"type": "end_turn"}, nil)
	}
}
