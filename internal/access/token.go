// Package access decides who may use the API. For now there is one token, made
// on the first start and kept in the data directory for the owner of the files.
package access

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-dev/berth/internal/fault"
)

// TokenFile is the name of the token's file in the data directory.
const TokenFile = "api.token"

// Guard checks API tokens. Safe for concurrent use.
type Guard struct {
	sum [sha256.Size]byte
}

// NewGuard returns a guard that accepts exactly this token.
func NewGuard(token string) *Guard { return &Guard{sum: sha256.Sum256([]byte(token))} }

// LoadToken returns the token of a data directory and makes one on first use,
// readable by its owner alone.
func LoadToken(dir string) (string, error) {
	path := filepath.Join(dir, TokenFile)
	b, err := os.ReadFile(path)
	if err == nil {
		if t := strings.TrimSpace(string(b)); len(t) >= 32 {
			return t, nil
		}
		return "", fmt.Errorf("the API token in %s is too short; remove the file to have a new one made", path)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the API token: %w", err)
	}
	raw := make([]byte, 32)
	if _, err := rand.Read(raw); err != nil {
		return "", fmt.Errorf("make an API token: %w", err)
	}
	token := "berth_" + base64.RawURLEncoding.EncodeToString(raw)
	if err := os.WriteFile(path, []byte(token+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("keep the API token: %w", err)
	}
	return token, nil
}

// ReadToken returns the token of a data directory for a client on the same host.
// It makes none.
func ReadToken(dir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, TokenFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fault.New(fault.Unsigned, "no API token: there is none in %s", dir).
			WithNext("start the server first (berth serve), set BERTH_DATA_DIR to its data directory, or set BERTH_TOKEN")
	case errors.Is(err, fs.ErrPermission):
		return "", fault.New(fault.Refused, "the API token in %s may not be read by this user", dir).
			WithNext("run this as the server's user, or set BERTH_TOKEN")
	case err != nil:
		return "", fmt.Errorf("read the API token: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Check returns nil when the request carries the token as a bearer, and a fault
// otherwise. It takes the same time for every wrong token.
func (g *Guard) Check(r *http.Request) error {
	given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return fault.New(fault.Unsigned, "this needs the API token").
			WithNext("send it as \"Authorization: Bearer …\"; it is in the file %s of the data directory", TokenFile)
	}
	sum := sha256.Sum256([]byte(strings.TrimSpace(given)))
	if subtle.ConstantTimeCompare(sum[:], g.sum[:]) != 1 {
		return fault.New(fault.Unsigned, "the API token is not valid").
			WithNext("use the one in the file %s of the data directory", TokenFile)
	}
	return nil
}
