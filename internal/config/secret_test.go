package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestSecretsCannotBePrinted(t *testing.T) {
	const text = "hunter2"
	s := NewSecret(text, "file x")
	type hidden struct{ s Secret }
	c := Config{APIKey: s, Environments: []Environment{{Key: s, SigningKeys: []Secret{s}}}}
	var out bytes.Buffer
	for _, v := range []any{s, &s, c, &c, hidden{s}, []Secret{s}, map[string]Secret{"k": s}, errors.Join(fmt.Errorf("%v", s))} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(b)
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "v", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "v", v)
	}
	text2, err := s.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	out.Write(text2)
	for _, form := range []string{text, fmt.Sprintf("%x", text), fmt.Sprintf("%X", text)} {
		if strings.Contains(out.String(), form) {
			t.Errorf("%q was printed:\n%s", form, &out)
		}
	}
	if !strings.Contains(out.String(), redacted) || s.Reveal() != text || s.From() != "file x" {
		t.Error("the placeholder is missing, or the secret is lost")
	}
	var none Secret
	if none.Set() || none.String() != "" || none.Reveal() != "" {
		t.Error("the zero secret is something")
	}
}

func TestParseBytes(t *testing.T) {
	for text, want := range map[string]Bytes{
		"0B": 0, "17B": 17, "2GiB": 2 << 30, "1.5GiB": 3 << 29, "512MiB": 512 << 20, "64KiB": 64 << 10, "1TiB": 1 << 40,
		"1kB": 1000, "1 MB": 1e6, "2GB": 2e9,
	} {
		if got, err := ParseBytes(text); err != nil || got != want {
			t.Errorf("ParseBytes(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "B", "2", "2G", "2gib", "-1B", "1e400GiB", "9999999999TiB", "NaNB", "InfB", "0x10B", "1_0B", "2  GiB", "GiB2", "+1B", "1,5GiB"} {
		if got, err := ParseBytes(text); err == nil {
			t.Errorf("ParseBytes(%q) = %d, want an error", text, got)
		}
	}
}

func TestBytesAreWrittenAsTheyAreRead(t *testing.T) {
	for _, b := range []Bytes{0, 1, 1023, 1 << 10, 1 << 20, 3 << 29, 2 << 30, 1 << 40, 1<<40 + 1} {
		if got, err := ParseBytes(b.String()); err != nil || got != b {
			t.Errorf("%d is written %q and read %d, %v", int64(b), b, got, err)
		}
	}
}

func TestDurationsAreStrict(t *testing.T) {
	for _, text := range []string{"", "0", "15", "-1s", "1 m", "1d", "s"} {
		if got, err := parseDuration(text); err == nil {
			t.Errorf("%q is read as %v", text, got)
		}
	}
	for text, want := range map[string]string{"120s": "2m", "1h30m": "1h30m", "90m": "1h30m", "1h": "1h", "15s": "15s", "0s": "0s", "1h0m5s": "1h0m5s"} {
		d, err := parseDuration(text)
		if err != nil || formatDuration(d) != want {
			t.Errorf("%s is written %s, %v; want %s", text, formatDuration(d), err, want)
		}
	}
}
