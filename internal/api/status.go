package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/intake"
)

// ServerStatus is how the server does.
type ServerStatus struct {
	Version  string          `json:"version"`
	Capacity int             `json:"capacity" doc:"work items that may be held at once"`
	Free     int             `json:"free"`
	Pollers  []intake.Status `json:"pollers"`
}

func (s *server) status(api huma.API) {
	huma.Register(api, operation("get-status", http.MethodGet, "/api/v1/status", "How the server does"),
		func(context.Context, *struct{}) (*answer[ServerStatus], error) {
			return &answer[ServerStatus]{ServerStatus{Version: s.Version, Capacity: s.Capacity, Free: s.Rooms.Free(), Pollers: s.Pollers()}}, nil
		})
}

// healthz says that the process serves.
func (s *server) healthz(w http.ResponseWriter, _ *http.Request) {
	writeHealth(w, nil)
}

// readyz says whether work is being done: the database answers and at least one
// environment is polled.
func (s *server) readyz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	if err := s.Records.Ping(ctx); err != nil {
		reason := "the database does not answer"
		if fault.CodeOf(err) != fault.Internal {
			reason = fault.Public(err).Error()
		}
		writeHealth(w, []string{reason})
		return
	}
	if n := s.Rooms.StalledCount(); n > 0 {
		writeHealth(w, []string{fmt.Sprintf("what happens in sessions (%d) cannot be recorded: %s", n, s.stalledWhy())})
		return
	}
	var wrong []string
	for _, p := range s.Pollers() {
		switch {
		case p.Stopped:
			wrong = append(wrong, "the platform refuses environment "+p.Environment)
		case p.Failures > 0:
			wrong = append(wrong, "the platform is not reached for environment "+p.Environment)
		case !p.LastPoll.IsZero() || p.AtCapacity:
			writeHealth(w, nil) // one that works is enough
			return
		default:
			wrong = append(wrong, "environment "+p.Environment+" was not polled yet")
		}
	}
	writeHealth(w, append(wrong, "no environment is served"))
}

func writeHealth(w http.ResponseWriter, wrong []string) {
	w.Header().Set("Content-Type", "application/json")
	body := map[string]any{"status": "ok"}
	if len(wrong) > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
		body = map[string]any{"status": "unavailable", "reasons": wrong}
	}
	_ = json.NewEncoder(w).Encode(body) // the client may be gone
}
