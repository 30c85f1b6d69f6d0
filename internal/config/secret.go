package config

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// redacted stands for a secret wherever one would be printed.
const redacted = "[redacted]"

// Secret is a value that cannot be printed, logged or encoded by accident. The
// zero value is not set. Only Reveal returns what it holds.
type Secret struct {
	// The value stands behind a pointer so that even printing by reflection,
	// which skips the methods of unexported fields, shows an address at most.
	value *string
	from  string // "environment variable NAME" or "file PATH"; "" when not set
	lack  string // why a reference has no value
}

// NewSecret returns a secret that holds value; from says where it came from.
func NewSecret(value, from string) Secret { return Secret{value: &value, from: from} }

// Set reports whether the secret is configured, which does not say that its
// reference leads anywhere: Validate does.
func (s Secret) Set() bool { return s.from != "" }

// Reveal returns the value, "" when there is none. Hand it on; do not keep it.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// From names the place that the secret was read from.
func (s Secret) From() string { return s.from }

func (s Secret) mask() string {
	if !s.Set() {
		return ""
	}
	return redacted
}

// String returns a placeholder, or "" when the secret is not set.
func (s Secret) String() string { return s.mask() }

// GoString returns a placeholder.
func (s Secret) GoString() string { return fmt.Sprintf("config.Secret(%q)", s.mask()) }

// Format writes a placeholder for every verb.
func (s Secret) Format(f fmt.State, verb rune) {
	if verb == 'v' && f.Flag('#') {
		_, _ = io.WriteString(f, s.GoString())
		return
	}
	_, _ = io.WriteString(f, s.mask())
}

// MarshalJSON encodes a placeholder.
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal(s.mask()) }

// MarshalText encodes a placeholder, for every encoder that is not JSON.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.mask()), nil }

// LogValue logs a placeholder.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.mask()) }

// maxSecret bounds a secret's file, in bytes.
const maxSecret = 64 << 10

// fromEnv reads a secret from an environment variable.
func fromEnv(src Source, name string) Secret {
	s := Secret{from: "environment variable " + name}
	if v := strings.TrimSpace(src.Getenv(name)); v != "" {
		s.value = &v
	} else {
		s.lack = "the environment variable " + name + " is not set"
	}
	return s
}

// fromFile reads a secret from a file; white space around it is not part of it.
func fromFile(src Source, path string) Secret {
	s := Secret{from: "file " + path}
	b, err := src.ReadFile(path)
	v := strings.TrimSpace(string(b))
	switch {
	case err != nil:
		s.lack = "the file cannot be read: " + err.Error()
	case len(b) > maxSecret:
		s.lack = fmt.Sprintf("the file %s is larger than a secret can be", path)
	case v == "":
		s.lack = "the file " + path + " is empty"
	default:
		s.value = &v
	}
	return s
}
