package session_test

import (
	"testing"

	"github.com/berth-dev/berth/internal/session"
)

// TestWhatNothingFollowsFromIsStoredTogether: the platform says much between two
// calls, and each record costs a sync of the disk.
func TestWhatNothingFollowsFromIsStoredTogether(t *testing.T) {
	inHouse(t, turns{bash("a", "b", "c", "d")}, func(h *house) {
		h.until("the turn is over", h.claude.Done)
		h.until("the work is given back", func() bool { return h.phase() == session.Warm })
		h.answered()
		rec, calls, err := h.records.LoadSession(t.Context(), sesn)
		if err != nil || len(calls) != 4 || rec.Waiting.For != session.ForNothing {
			t.Fatalf("%+v, %+v, %v", rec, calls, err)
		}
		for _, c := range calls {
			if c.State != session.Posted {
				t.Errorf("%s is %s on record", c.ID, c.State)
			}
		}
		// Each call costs two: that it is started and that it has finished.
		if n, most := h.records.Stored(), 2*len(calls)+10; n > most {
			t.Errorf("%d changes for %d calls, want at most %d", n, len(calls), most)
		}
	})
}
