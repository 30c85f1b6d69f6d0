package api

import (
	"encoding/json"
	"errors"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/berth-dev/berth/internal/fault"
)

// Problem is the body of every error (RFC 9457) with Berth's stable code.
type Problem struct {
	Status int        `json:"status"`
	Title  string     `json:"title"`
	Code   fault.Code `json:"code" doc:"stable, for programs"`
	Detail string     `json:"detail" doc:"what is wrong, for people"`
	Field  string     `json:"field,omitempty" doc:"the input field that is to blame"`
	Next   string     `json:"next,omitempty" doc:"what to do about it"`
}

// Error implements huma.StatusError.
func (p *Problem) Error() string { return p.Detail }

// GetStatus implements huma.StatusError.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType makes huma answer with the problem media type.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// problem is the public form of any error.
func problem(err error) *Problem {
	f := fault.Public(err)
	status := fault.Status(f.Code)
	return &Problem{Status: status, Title: http.StatusText(status), Code: f.Code, Detail: f.Message, Field: f.Field, Next: f.Next}
}

func writeError(w http.ResponseWriter, err error) {
	var p *Problem
	if !errors.As(err, &p) {
		p = problem(err)
	}
	w.Header().Set("Content-Type", p.ContentType(""))
	if p.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="berth"`)
	}
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // the client may be gone
}

// huma makes its own validation errors; they get Berth's form too.
func init() {
	huma.NewError = func(status int, msg string, errs ...error) huma.StatusError {
		p := &Problem{Status: status, Title: http.StatusText(status), Code: fault.FromStatus(status), Detail: msg}
		if status == http.StatusUnprocessableEntity || status == http.StatusBadRequest {
			p.Status, p.Title, p.Code = http.StatusBadRequest, http.StatusText(http.StatusBadRequest), fault.Invalid
		}
		for _, err := range errs {
			d, ok := err.(huma.ErrorDetailer)
			if !ok {
				continue
			}
			detail := d.ErrorDetail()
			p.Field = detail.Location
			p.Detail = msg + ": " + detail.Message
			break
		}
		return p
	}
}
