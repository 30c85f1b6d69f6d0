package session

import (
	"errors"
	"testing"
)

func TestAServersFailureIsNoReasonToGiveASessionUp(t *testing.T) {
	for _, c := range []struct {
		status int
		retry  *bool
		want   bool
	}{
		{500, nil, true},
		{503, new(false), true}, // the header speaks of the request, not of the session
		{503, new(true), true},
		{429, nil, true},
		{429, new(false), false},
		{409, new(false), false},
		{400, nil, false},
		{400, new(true), true},
		{403, nil, false},
	} {
		if got := Retryable(&Refusal{Status: c.status, Retry: c.retry}); got != c.want {
			t.Errorf("status %d, retry %v: retryable is %t, want %t", c.status, c.retry, got, c.want)
		}
	}
	if !Retryable(errors.New("connection reset")) || Retryable(nil) {
		t.Error("no answer is retryable, no error is not")
	}
}
