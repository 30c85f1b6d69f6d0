package server_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/guest/guesttest"
	"github.com/berth-dev/berth/internal/tool"
)

func TestBashCallRuns(t *testing.T) {
	g := guesttest.Start(t)
	got, err := g.Call(t.Context(), tool.Call{ID: "sevt_1", Name: tool.Bash, Input: []byte(`{"command":"echo hi"}`)})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(tool.Text("hi\n\n"), got); diff != "" {
		t.Error(diff)
	}
}
