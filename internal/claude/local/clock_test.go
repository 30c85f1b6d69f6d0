package local

import (
	"testing"
	"time"
)

func TestAManualClockRingsOnlyWhatIsDue(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	c := NewManualClock(start)
	soon, later := c.After(time.Second), c.After(time.Minute)
	c.Advance(time.Second)
	select {
	case at := <-soon:
		if !at.Equal(start.Add(time.Second)) {
			t.Errorf("it rang at %v", at)
		}
	default:
		t.Error("the due alarm did not ring")
	}
	select {
	case <-later:
		t.Error("an alarm rang too early")
	default:
	}
	select {
	case <-c.After(0):
	default:
		t.Error("an alarm for now did not ring at once")
	}
}

func TestStampsGrowOnAClockThatStands(t *testing.T) {
	s := New(Options{Clock: NewManualClock(time.Unix(0, 0))})
	defer s.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.now()
	for range 1000 {
		now := s.now()
		if !now.After(before) {
			t.Fatalf("%v follows %v", now, before)
		}
		before = now
	}
}
