package conformance

import "testing"

func TestTheTableIsReadStrictlyAndIsWhole(t *testing.T) {
	table, err := Table()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d cases", len(table))
}
