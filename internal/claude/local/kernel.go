package local

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// This file holds what every resource of the platform shares: errors, ids,
// strict decoding and cursors.

// apiError is an error in the platform's envelope (contract §1.5).
type apiError struct {
	Status  int
	Type    string
	Message string
	Details map[string]any // optional
}

func (e *apiError) Error() string { return fmt.Sprintf("%d %s: %s", e.Status, e.Type, e.Message) }

var statusTypes = map[int]string{
	400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
	404: "not_found_error", 409: "conflict_error", 412: "invalid_request_error", 413: "request_too_large",
	429: "rate_limit_error", 500: "api_error", 504: "timeout_error", 529: "overloaded_error",
}

// fail returns an apiError with the type that belongs to the status.
func fail(status int, format string, args ...any) *apiError {
	typ, ok := statusTypes[status]
	if !ok {
		typ = "api_error"
	}
	return &apiError{Status: status, Type: typ, Message: fmt.Sprintf(format, args...)}
}

// failCode is fail with details.error_code.
func failCode(status int, code, format string, args ...any) *apiError {
	e := fail(status, format, args...)
	e.Details = map[string]any{"error_code": code}
	return e
}

const maxBody = 32 << 20 // contract §9.1

// decode reads a JSON body strictly into v: unknown fields are a 400 (contract
// §16). An empty body leaves v alone when it may be empty.
func decode(w http.ResponseWriter, r *http.Request, v any, mayBeEmpty bool) *apiError {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return fail(413, "the request body exceeds %d bytes", maxBody)
		}
		return fail(400, "reading the request body: %v", err)
	}
	if len(bytes.TrimSpace(body)) == 0 {
		if mayBeEmpty {
			return nil
		}
		return fail(400, "the request body is empty; send a JSON object")
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fail(400, "invalid request body: %v", err)
	}
	if d.More() {
		return fail(400, "invalid request body: more than one JSON value")
	}
	return nil
}

// newID returns prefix and 24 random base-58 characters. Ids are opaque
// (contract §1.7).
func newID(prefix string) string {
	const alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
	var b strings.Builder
	b.WriteString(prefix + "01")
	for range 22 {
		n, err := rand.Int(rand.Reader, big.NewInt(int64(len(alphabet))))
		if err != nil {
			panic("reading random bytes: " + err.Error()) // crypto/rand never fails on supported systems
		}
		b.WriteByte(alphabet[n.Int64()])
	}
	return b.String()
}

// stamp is the platform's time format: RFC 3339 UTC with microseconds.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z") }

// stampOrNil is stamp with null for the zero time.
func stampOrNil(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return stamp(t)
}

// page is one page of a list. The cursor is opaque to clients and binds the
// query that it was made for (contract §1.6).
type page struct {
	Limit  int
	Offset int
	query  string
}

// pageOf reads limit and page. bind is everything else that shaped the list: a
// cursor made under another bind is a 400.
func pageOf(r *http.Request, defaultLimit, maxLimit int, bind string) (page, *apiError) {
	p := page{Limit: defaultLimit, query: bind}
	if s := r.URL.Query().Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > maxLimit {
			return p, fail(400, "limit: must be a whole number from 1 to %d", maxLimit)
		}
		p.Limit = n
	}
	s := r.URL.Query().Get("page")
	if s == "" {
		return p, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(s)
	offset, rest, ok := strings.Cut(string(raw), "|")
	if err != nil || !ok {
		return p, fail(400, "page: not a cursor of this list")
	}
	if rest != bind {
		return p, fail(400, "page: the cursor belongs to a list with other filters or another order")
	}
	if p.Offset, err = strconv.Atoi(offset); err != nil || p.Offset < 0 {
		return p, fail(400, "page: not a cursor of this list")
	}
	return p, nil
}

// list cuts all to this page and returns the platform's list object.
func list[T any](p page, all []T) map[string]any {
	from := min(p.Offset, len(all))
	to := min(from+p.Limit, len(all))
	data := all[from:to]
	if data == nil {
		data = []T{}
	}
	var next any
	if to < len(all) {
		next = p.at(to)
	}
	return map[string]any{"data": data, "next_page": next}
}

// at returns the cursor of the page of this list that begins at offset.
func (p page) at(offset int) string {
	return base64.RawURLEncoding.EncodeToString([]byte(strconv.Itoa(offset) + "|" + p.query))
}
