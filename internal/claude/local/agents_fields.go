package local

import (
	"bytes"
	"encoding/json"
	"maps"
	"unicode/utf8"
)

// This file reads the pieces of request bodies that agents, skills and memory
// stores share: fields that may be omitted, null or set; unions; metadata.

// maybe is a field that was omitted, sent as null, or sent with a value. Nested
// values are decoded as strictly as the body around them.
type maybe[T any] struct {
	Sent  bool // the field was in the body
	Null  bool // and was null
	Value T
}

// UnmarshalJSON records that the field was sent.
func (m *maybe[T]) UnmarshalJSON(b []byte) error {
	m.Sent = true
	if bytes.Equal(b, []byte("null")) {
		m.Null = true
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(&m.Value)
}

// given reports whether a value was sent.
func (m maybe[T]) given() bool { return m.Sent && !m.Null }

// strict decodes one member of a body into v; unknown fields are a 400 that
// names where.
func strict(raw json.RawMessage, v any, where string) *apiError {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fail(400, "%s: %v", where, err)
	}
	return nil
}

// typeOf returns the "type" of a union member, and "" when it has none.
func typeOf(raw json.RawMessage) string {
	var head struct {
		Type string `json:"type"`
	}
	if json.Unmarshal(raw, &head) != nil {
		return ""
	}
	return head.Type
}

// isNull reports whether raw is absent or the literal null.
func isNull(raw json.RawMessage) bool {
	raw = bytes.TrimSpace(raw)
	return len(raw) == 0 || bytes.Equal(raw, []byte("null"))
}

// bounded checks the length of a string in characters.
func bounded(where, s string, least, most int) *apiError {
	if n := utf8.RuneCountInString(s); n < least || n > most {
		return fail(400, "%s: must have %d to %d characters, has %d", where, least, most, n)
	}
	return nil
}

// Bounds of metadata (contract §9.1).
const (
	maxMetadataPairs = 16
	maxMetadataKey   = 64
	maxMetadataValue = 512
)

// boundedMetadata checks a whole metadata bag.
func boundedMetadata(m map[string]string) *apiError {
	if len(m) > maxMetadataPairs {
		return fail(400, "metadata: at most %d pairs, got %d", maxMetadataPairs, len(m))
	}
	for k, v := range m {
		if err := bounded("metadata key", k, 1, maxMetadataKey); err != nil {
			return err
		}
		if err := bounded("metadata."+k, v, 0, maxMetadataValue); err != nil {
			return err
		}
	}
	return nil
}

// mergedMetadata applies a patch to a bag: a string sets a key, null deletes it,
// a key that the patch does not name stays. The bag itself is not changed.
func mergedMetadata(bag map[string]string, patch map[string]*string) (map[string]string, *apiError) {
	merged := make(map[string]string, len(bag)+len(patch))
	maps.Copy(merged, bag)
	for k, v := range patch {
		if v == nil {
			delete(merged, k)
		} else {
			merged[k] = *v
		}
	}
	return merged, boundedMetadata(merged)
}

// orEmpty returns m, or an empty map for nil: lists and objects are never null
// in replies.
func orEmpty(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}
