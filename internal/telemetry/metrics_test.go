package telemetry

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/event"
)

func TestFinishedCallsAreCountedByTool(t *testing.T) {
	m := NewMetrics("test", Gauge{Name: "slots_free", Help: "Free slots.", Read: func() float64 { return 3 }})
	m.Observe(event.New(time.Now(), "sesn_1", event.CallFinished, map[string]any{"name": "bash", "ms": 1500, "is_error": true}))
	m.Observe(event.New(time.Now(), "sesn_1", event.CallFinished, map[string]any{"name": "bash", "ms": 500}))
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{
		`berth_call_seconds_count{tool="bash"} 2`, `berth_call_seconds_sum{tool="bash"} 2`, `berth_call_errors_total{tool="bash"} 1`,
		`berth_events_total{type="call.finished"} 2`, `berth_slots_free 3`, `berth_build_info{version="test"} 1`,
	} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("the metrics lack %q", want)
		}
	}
}
