package intake_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/intake"
	"github.com/berth-dev/berth/internal/session"
)

// scene is a queue and a keeper in memory, and what passed between them and a
// poller, in order.
type scene struct {
	poll func(n int) (*session.Item, error) // the n-th poll, from 1
	ack  func(n int) error
	stop error
	free int

	record error
	accept error

	mu    sync.Mutex
	polls []time.Time
	acks  int
	held  int
	story []string
	freed chan struct{}
}

func newScene() *scene {
	return &scene{
		poll: func(int) (*session.Item, error) { return nil, nil }, ack: func(int) error { return nil },
		free: 10, freed: make(chan struct{}, 1),
	}
}

func (s *scene) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.story = append(s.story, fmt.Sprintf(format, args...))
}

// asked returns when the polls were made.
func (s *scene) asked() []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.polls)
}

// taken returns how many slots are held.
func (s *scene) taken() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held
}

func (s *scene) told() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.story)
}

func (s *scene) Environment() string { return "env_1" }

func (s *scene) Poll(ctx context.Context, block time.Duration) (*session.Item, error) {
	s.mu.Lock()
	s.polls = append(s.polls, time.Now())
	n := len(s.polls)
	s.mu.Unlock()
	it, err := s.poll(n)
	if it != nil || err != nil {
		return it, err
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(block):
		return nil, nil
	}
}

func (s *scene) Ack(_ context.Context, id string) error {
	s.mu.Lock()
	s.acks++
	n := s.acks
	s.mu.Unlock()
	err := s.ack(n)
	s.note("ack %s: %v", id, err)
	return err
}

func (s *scene) ForceStop(_ context.Context, id string) error {
	s.note("stop %s", id)
	return s.stop
}

func (s *scene) Platform(session.Item) session.Platform      { return nil }
func (s *scene) Stats(context.Context) (intake.Stats, error) { return intake.Stats{}, nil }
func (s *scene) Freed() <-chan struct{}                      { return s.freed }
func (s *scene) Abandon(_ context.Context, w session.Work, why string) error {
	s.note("abandon %s", w.ID)
	return nil
}

func (s *scene) Reserve() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held >= s.free {
		return false
	}
	s.held++
	return true
}

func (s *scene) Unreserve() {
	s.mu.Lock()
	s.held--
	s.mu.Unlock()
	select {
	case s.freed <- struct{}{}:
	default:
	}
}

func (s *scene) Record(_ context.Context, it session.Item) (session.Work, error) {
	s.note("record %s: %v", it.ID, s.record)
	return session.Work{ID: it.ID}, s.record
}

func (s *scene) Accept(_ context.Context, it session.Item, w session.Work, _ session.Platform) error {
	s.note("accept %s: %v", w.ID, s.accept)
	if s.accept != nil {
		s.Unreserve()
	}
	return s.accept
}

// run lets a poller run for a while.
func (s *scene) run(t *testing.T, d time.Duration, during ...func(*intake.Poller)) *intake.Poller {
	t.Helper()
	p := intake.NewPoller(s, s, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { p.Run(ctx) })
	for _, f := range during {
		f(p)
	}
	wg.Wait()
	return p
}

func (s *scene) want(t *testing.T, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, s.told()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func work(n int) *session.Item {
	return &session.Item{ID: fmt.Sprint("work_", n), Environment: "env_1", Type: "session", Session: fmt.Sprint("sesn_", n)}
}

// once hands out one item with the first poll.
func once(it *session.Item) func(int) (*session.Item, error) {
	return func(n int) (*session.Item, error) {
		if n == 1 {
			return it, nil
		}
		return nil, nil
	}
}

func refusal(status int) error { return &session.Refusal{Status: status, Message: "no"} }

var errReset = errors.New("connection reset by peer")

func TestItemIsRecordedThenAcknowledgedThenAccepted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene()
		s.poll = once(work(1))
		p := s.run(t, 10*time.Second)
		s.want(t, "record work_1: <nil>", "ack work_1: <nil>", "accept work_1: <nil>")
		if st := p.Status(); st.LastClaim.IsZero() || st.LastPoll.IsZero() || st.Environment != "env_1" {
			t.Errorf("status = %+v", st)
		}
		if s.taken() != 1 {
			t.Errorf("%d slots are held, want the item's", s.taken())
		}
	})
}

func TestItemsAreClaimedWithoutAPauseAndNothingIsPolledGently(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene()
		s.poll = func(n int) (*session.Item, error) {
			if n <= 5 {
				return work(n), nil
			}
			return nil, nil
		}
		s.run(t, time.Minute)
		if took := s.asked()[5].Sub(s.asked()[0]); took > 0 {
			t.Errorf("five items took %v", took)
		}
		for i := 6; i < len(s.asked()); i++ {
			if pause := s.asked()[i].Sub(s.asked()[i-1]) - 999*time.Millisecond; pause < time.Second || pause > 3*time.Second {
				t.Errorf("a pause of %v after an empty poll", pause)
			}
		}
	})
}

func TestNothingIsAskedForWithoutASlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene()
		s.free = 2
		s.poll = func(n int) (*session.Item, error) { return work(n), nil }
		var freedAt time.Time
		p := s.run(t, time.Minute, func(p *intake.Poller) {
			<-time.After(30 * time.Second)
			if st := p.Status(); len(s.asked()) != 2 || !st.AtCapacity {
				t.Errorf("%d polls with two slots, status %+v", len(s.asked()), st)
			}
			freedAt = time.Now()
			s.Unreserve()
		})
		if len(s.asked()) != 3 || !s.asked()[2].Equal(freedAt) {
			t.Errorf("polls at %v, want the third when a slot was freed: %v", s.asked(), freedAt)
		}
		if st := p.Status(); !st.AtCapacity {
			t.Errorf("status = %+v", st)
		}
	})
}

func TestTwoPollersShareTheSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene()
		s.free = 1
		s.poll = func(n int) (*session.Item, error) { return work(n), nil }
		s.run(t, time.Minute, func(*intake.Poller) { s.run(t, time.Minute) })
		if s.taken() != 1 || len(s.asked()) != 1 {
			t.Errorf("%d items were claimed for one slot", s.taken())
		}
	})
}

func TestItemThatIsNoSessionIsFinishedWithoutOne(t *testing.T) {
	for _, it := range []*session.Item{{ID: "work_1", Type: "healthcheck"}, {ID: "work_1", Type: "session"}} {
		synctest.Test(t, func(t *testing.T) {
			s := newScene()
			s.poll = once(it)
			s.run(t, time.Minute)
			s.want(t, "stop work_1")
			if s.taken() != 0 {
				t.Errorf("%d slots are held", s.taken())
			}
		})
	}
}

func TestAcknowledgement(t *testing.T) {
	for name, test := range map[string]struct {
		answers []error
		claimed bool
	}{
		"taken":                          {[]error{nil}, true},
		"somebody else's":                {[]error{refusal(409)}, false},
		"gone":                           {[]error{refusal(404)}, false},
		"lost, and ours":                 {[]error{errReset, refusal(409)}, true},
		"lost, and taken again":          {[]error{errReset, nil}, true},
		"failed inside, and ours":        {[]error{refusal(503), refusal(409)}, true},
		"rate limited, then not ours":    {[]error{refusal(429), refusal(409)}, false},
		"rate limited, then taken":       {[]error{refusal(429), nil}, true},
		"never answered":                 {[]error{errReset, errReset, errReset, errReset}, false},
		"failing until the last attempt": {[]error{refusal(500), refusal(500), refusal(500), nil}, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScene()
				s.poll = once(work(1))
				s.ack = func(n int) error { return test.answers[n-1] }
				s.run(t, time.Minute)
				story := strings.Join(s.told(), "; ")
				if got := strings.HasSuffix(story, "accept work_1: <nil>"); got != test.claimed {
					t.Errorf("claimed = %v: %s", got, story)
				}
				if got := strings.HasSuffix(story, "abandon work_1"); got == test.claimed {
					t.Errorf("abandoned = %v: %s", got, story)
				}
				if strings.Contains(story, "stop") {
					t.Errorf("the item was stopped, and would not be handed out again: %s", story)
				}
				if want := map[bool]int{true: 1, false: 0}[test.claimed]; s.taken() != want || s.acks != len(test.answers) {
					t.Errorf("%d slots are held after %d acknowledgements", s.taken(), s.acks)
				}
			})
		})
	}
}

func TestItemThatCannotBeRecordedIsLeftAndAskedForGently(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene()
		s.record = errors.New("disk full")
		s.poll = func(n int) (*session.Item, error) { return work(n), nil }
		p := s.run(t, time.Minute)
		if n := len(s.asked()); n > 12 || s.acks > 0 || s.taken() != 0 {
			t.Errorf("%d polls, %d acknowledgements, %d slots held", n, s.acks, s.taken())
		}
		if st := p.Status(); st.Failures == 0 || !strings.Contains(st.LastError, "disk full") {
			t.Errorf("status = %+v", st)
		}
	})
}

func TestItemThatIsNotAcceptedGivesItsSlotBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene()
		s.accept = errors.New("leaving")
		s.poll = once(work(1))
		s.run(t, time.Minute)
		if s.taken() != 0 {
			t.Errorf("%d slots are held", s.taken())
		}
	})
}

func TestRefusedKeyRestsAndRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene()
		s.poll = func(n int) (*session.Item, error) {
			if n < 4 {
				return nil, refusal(401)
			}
			return nil, nil
		}
		p := s.run(t, 5*time.Minute, func(p *intake.Poller) {
			<-time.After(90 * time.Second)
			if st := p.Status(); len(s.asked()) != 2 || !st.Stopped || st.Failures != 2 {
				t.Errorf("%d polls in 90 s, status %+v", len(s.asked()), st)
			}
		})
		if st := p.Status(); st.Stopped || st.Failures != 0 || st.LastError != "" {
			t.Errorf("status = %+v, want it recovered", st)
		}
	})
}

func TestFailingPollsBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene()
		s.poll = func(n int) (*session.Item, error) { return nil, refusal(503) }
		p := s.run(t, 10*time.Minute)
		if n := len(s.asked()); n < 8 || n > 30 {
			t.Errorf("%d polls in ten minutes", n)
		}
		if st := p.Status(); st.Stopped || st.Failures != len(s.asked()) {
			t.Errorf("status = %+v", st)
		}
		for i := 1; i < len(s.asked()); i++ {
			if pause := s.asked()[i].Sub(s.asked()[i-1]); pause < time.Second || pause > time.Minute {
				t.Errorf("a pause of %v", pause)
			}
		}
	})
}

func TestPlatformsOwnPauseIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene()
		s.poll = func(n int) (*session.Item, error) {
			return nil, &session.Refusal{Status: 429, RetryAfter: 2 * time.Minute}
		}
		s.run(t, 3*time.Minute)
		if len(s.asked()) != 2 || s.asked()[1].Sub(s.asked()[0]) != 2*time.Minute {
			t.Errorf("polls at %v", s.asked())
		}
	})
}

func TestPollThatHangsIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene()
		hang := make(chan struct{})
		defer close(hang)
		p := intake.NewPoller(hanging{s}, s, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		p.Run(ctx)
		if st := p.Status(); st.Failures < 2 || s.taken() != 0 {
			t.Errorf("status = %+v, %d slots held", st, s.taken())
		}
	})
}

// hanging is a queue that does not answer.
type hanging struct{ *scene }

func (hanging) Poll(ctx context.Context, _ time.Duration) (*session.Item, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestBellWakesAPollerAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene()
		s.poll = func(n int) (*session.Item, error) { return nil, refusal(503) }
		s.run(t, 10*time.Minute, func(p *intake.Poller) {
			<-time.After(5 * time.Minute) // pauses are long by now
			before := len(s.asked())
			for range 100 {
				p.Ring() // never blocks
			}
			synctest.Wait()
			if n := len(s.asked()) - before; n < 1 || n > 2 {
				t.Errorf("%d polls after 100 rings", n)
			}
		})
	})
}

func TestClaimThatHasBegunIsCarriedThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene()
		s.poll = once(work(1))
		leave := make(chan struct{})
		s.ack = func(n int) error {
			if n == 1 {
				close(leave)
				return errReset
			}
			return nil
		}
		p := intake.NewPoller(s, s, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { p.Run(ctx) })
		<-leave
		cancel()
		wg.Wait()
		s.want(t, "record work_1: <nil>", "ack work_1: connection reset by peer", "ack work_1: <nil>", "accept work_1: <nil>")
		if s.taken() != 1 {
			t.Errorf("%d slots are held", s.taken())
		}
	})
}
