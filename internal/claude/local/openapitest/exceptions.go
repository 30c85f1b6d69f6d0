package openapitest

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
)

// exception is a place where the API is known to behave otherwise than its
// description says. Each carries its reason; there are no others.
type exception struct {
	reason string
	covers func(x *exchange) bool
}

var exceptions = []exception{
	{
		reason: "stop is described as 200 with the work item, and observed as 204 without a body (contract §2.2)",
		covers: func(x *exchange) bool { return x.status == http.StatusNoContent && strings.HasSuffix(x.path, "/stop") },
	},
	{
		reason: "work items are described as sessions only, and the queue has health checks too (contract §2.2)",
		covers: func(x *exchange) bool {
			return strings.Contains(x.path, "/work") && bytes.Contains(x.response, []byte(`"type":"healthcheck"`))
		},
	},
	{
		reason: "the beta of October 2025 selects an older shape of skills, which is no longer described (contract §1.3)",
		covers: func(x *exchange) bool {
			return strings.HasPrefix(x.path, "/v1/skills") && strings.Contains(x.betas, "skills-2025-10-02")
		},
	},
	{
		reason: "paths below /_local belong to the local platform and not to the API",
		covers: func(x *exchange) bool { return strings.HasPrefix(x.path, "/_local") },
	},
}

// frames are the events of operations that answer with a stream when the request
// asks for one, and describe only the other answer.
var frames = map[string]string{"POST /v1/messages": "MessageStreamEvent"}

// undescribed are the statuses that any operation may answer with although
// only some describe them; their body must still be an error envelope.
var undescribed = map[int]string{
	http.StatusServiceUnavailable: "a server that is closing",
	529:                           "overload: described for part of the API only (contract §1.5)",
	413:                           "a body beyond the limit can arrive at any operation",
}

// undescribedErrors are the types of errors that the API sends from operations
// whose description lacks them. Their envelope must still be the usual one.
var undescribedErrors = map[string]string{
	"conflict_error":    "described for memory stores only, and the type of every 409 (contract §1.5)",
	"request_too_large": "the type of every 413 (contract §1.5), described nowhere",
}

// excused reports whether a refusal is an envelope with such a type.
func excused(raw []byte) bool {
	var e struct {
		Type  string `json:"type"`
		Error struct {
			Type    string `json:"type"`
			Message string `json:"message"`
		} `json:"error"`
		RequestID string `json:"request_id"`
	}
	if json.Unmarshal(raw, &e) != nil {
		return false
	}
	_, known := undescribedErrors[e.Error.Type]
	return known && e.Type == "error" && e.Error.Message != "" && e.RequestID != ""
}
