package fault

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

func TestEveryCodeHasAnHTTPStatusAndAnExitCode(t *testing.T) {
	if len(Codes()) != 12 {
		t.Errorf("%d codes; the table has to follow the constants", len(Codes()))
	}
	seen := map[int]Code{}
	for _, c := range Codes() {
		status := Status(c)
		if status < 400 || http.StatusText(status) == "" {
			t.Errorf("%s: status %d", c, status)
		}
		if other, taken := seen[status]; taken {
			t.Errorf("%s and %s share the status %d, so a client cannot tell them apart", c, other, status)
		}
		seen[status] = c
		if FromStatus(status) != c {
			t.Errorf("FromStatus(%d) = %s, want %s", status, FromStatus(status), c)
		}
		if exit := Exit(c.Err()); exit < ExitFailed || exit > ExitRefused {
			t.Errorf("%s: exit code %d", c, exit)
		}
	}
	if Status("unheard of") != 500 || Exit(errors.New("x")) != ExitFailed || Exit(nil) != ExitOK {
		t.Error("what is not in the table is an internal failure")
	}
}

func TestOnlyTheFaultItselfIsPublic(t *testing.T) {
	cause := errors.New("open /secret/path: permission denied")
	err := fmt.Errorf("start: %w", Wrap(cause, Invalid, "the folder cannot be used").WithField("data_dir").WithNext("choose another"))
	if got := err.Error(); got != "start: data_dir: the folder cannot be used: open /secret/path: permission denied; choose another" {
		t.Errorf("for the log: %q", got)
	}
	if got := Public(err).Error(); got != "data_dir: the folder cannot be used; choose another" {
		t.Errorf("for a client: %q", got)
	}
	for _, hidden := range []error{cause, Wrap(cause, Internal, "secret")} {
		if got := Public(hidden); got.Code != Internal || strings.Contains(got.Error(), "secret") {
			t.Errorf("Public(%v) = %v", hidden, got)
		}
	}
}

func TestFaultsAreFoundByCode(t *testing.T) {
	err := fmt.Errorf("load: %w", New(NotFound, "there is no %s", "x"))
	if !errors.Is(err, NotFound.Err()) || errors.Is(err, Invalid.Err()) || !errors.Is(err, err) {
		t.Error("errors.Is does not tell codes apart")
	}
	if CodeOf(err) != NotFound || CodeOf(nil) != "" || CodeOf(errors.New("x")) != Internal {
		t.Error("CodeOf does not find the code")
	}
}
