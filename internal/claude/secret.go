package claude

import (
	"encoding/base64"
	"encoding/json"
	"strings"
)

// sessionsToken reads the per-item token from a work item's secret: URL-safe
// base64, padding optional, of a JSON object with sessions_token (contract
// §3.8). "" when there is none that could be sent. Neither the secret nor what
// is in it may be logged.
func sessionsToken(secret string) string {
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(secret), "="))
	if err != nil {
		return ""
	}
	var payload struct {
		Token string `json:"sessions_token"`
	}
	if json.Unmarshal(raw, &payload) != nil || !bearer(payload.Token).usable() {
		return ""
	}
	return payload.Token
}
