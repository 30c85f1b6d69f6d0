package openapitest

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// failures collects what Validated reports instead of failing the test.
type failures struct {
	testing.TB
	got []string
}

func (f *failures) Errorf(format string, args ...any) {
	f.got = append(f.got, fmt.Sprintf(format, args...))
}

const (
	agentOK = `{"type":"agent","id":"agent_1","version":1,"name":"n","description":null,"model":{"id":"claude-opus-5-5"},
		"system":null,"tools":[],"mcp_servers":[],"skills":[],"metadata":{},"multiagent":null,
		"execution_identity":{"type":"service_account"},"created_at":"2026-11-23T10:00:00Z",
		"updated_at":"2026-11-23T10:00:00Z","archived_at":null}`
	eventOK  = `{"id":"sevt_1","type":"session.status_running","processed_at":"2026-11-23T10:00:00Z"}`
	refusal  = `{"type":"error","error":{"type":"invalid_request_error","message":"m"},"request_id":"req_1"}`
	jsonMIME = "application/json"
)

func TestWhatTheDescriptionRefusesIsReported(t *testing.T) {
	tests := map[string]struct {
		method, path, body string
		status             int
		mime, reply        string
		want               string // part of the report, "" for none
	}{
		"a valid exchange":             {"POST", "/v1/agents", `{"name":"n","model":"m"}`, 200, jsonMIME, agentOK, ""},
		"an accepted unknown field":    {"POST", "/v1/agents", `{"name":"n","model":"m","x":1}`, 200, jsonMIME, agentOK, "accepted a request"},
		"a refused unknown field":      {"POST", "/v1/agents", `{"name":"n","model":"m","x":1}`, 400, jsonMIME, refusal, ""},
		"an accepted unknown query":    {"GET", "/v1/agents/agent_1?colour=red", "", 200, jsonMIME, agentOK, "colour"},
		"an accepted bad query":        {"GET", "/v1/agents/agent_1?version=one", "", 200, jsonMIME, agentOK, "version"},
		"the beta query":               {"GET", "/v1/agents/agent_1?beta=true&version=1", "", 200, jsonMIME, agentOK, ""},
		"a reply without its fields":   {"GET", "/v1/agents/agent_1", "", 200, jsonMIME, `{"type":"agent"}`, "does not match"},
		"a reply of another type":      {"GET", "/v1/agents/agent_1", "", 200, "text/plain", agentOK, "content type"},
		"an error without an envelope": {"GET", "/v1/agents/agent_1", "", 404, jsonMIME, `{"message":"m"}`, "does not match"},
		"a conflict":                   {"POST", "/v1/agents/agent_1", `{"version":1}`, 409, jsonMIME, strings.Replace(refusal, "invalid_request", "conflict", 1), ""},
		"an invented error":            {"GET", "/v1/agents/agent_1", "", 400, jsonMIME, strings.Replace(refusal, "invalid_request", "odd", 1), "does not match"},
		"a status nobody described":    {"GET", "/v1/agents/agent_1", "", 302, jsonMIME, `{}`, "status is not described"},
		"a path nobody described":      {"GET", "/v1/nothing", "", 200, jsonMIME, `{}`, "no such operation"},
		"404 on such a path":           {"GET", "/v1/nothing", "", 404, jsonMIME, refusal, ""},
		"a good frame":                 {"GET", "/v1/sessions/s/events/stream", "", 200, "text/event-stream", ": hi\n\nevent: session.status_running\ndata: " + eventOK + "\n\n", ""},
		"a frame under a wrong name":   {"GET", "/v1/sessions/s/events/stream", "", 200, "text/event-stream", "event: x\ndata: " + eventOK + "\n\n", "named"},
		"a frame without a time":       {"GET", "/v1/sessions/s/events/stream", "", 200, "text/event-stream", "event: session.status_running\ndata: {\"type\":\"session.status_running\",\"id\":\"sevt_1\"}\n\n", "processed_at"},
		"stop without a body":          {"POST", "/v1/environments/env_1/work/work_1/stop", `{}`, 204, "", "", ""},
		"a health check":               {"GET", "/v1/environments/env_1/work/poll", "", 200, jsonMIME, `{"data":{"type":"healthcheck"}}`, ""},
		"a poll that found nothing":    {"GET", "/v1/environments/env_1/work/poll?block_ms=999", "", 200, jsonMIME, "null", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := &failures{TB: t}
			h := Validated(f, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if tt.mime != "" {
					w.Header().Set("Content-Type", tt.mime)
				}
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, tt.reply)
			}))
			r := httptest.NewRequest(tt.method, tt.path, strings.NewReader(tt.body))
			r.Header.Set("Content-Type", jsonMIME)
			h.ServeHTTP(httptest.NewRecorder(), r)
			got := strings.Join(f.got, "\n")
			if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
				t.Errorf("reported %q, want a report about %q", got, tt.want)
			}
		})
	}
}
