package config

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// This file reads the tags of Config. Loading, checking and documenting are
// three walks over the same fields.

// field is one setting or section.
type field struct {
	path  string // as in sandbox.limits.memory
	tag   reflect.StructTag
	value reflect.Value
}

func (f field) key() string {
	return f.path[strings.LastIndexByte(f.path, '.')+1:]
}
func (f field) doc() string      { return f.tag.Get("doc") }
func (f field) computed() string { return f.tag.Get("computed") }
func (f field) env() []string    { return list(f.tag.Get("env")) }
func (f field) oneof() []string  { return list(f.tag.Get("oneof")) }

func list(tag string) []string {
	if tag == "" {
		return nil
	}
	return strings.Split(tag, ",")
}

// section reports whether the field holds further settings.
func (f field) section() bool {
	return f.value.Kind() == reflect.Struct && f.value.Type() != reflect.TypeFor[Secret]()
}

// listed reports whether the field is a list of sections.
func (f field) listed() bool {
	t := f.value.Type()
	return t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct && t.Elem() != reflect.TypeFor[Secret]()
}

// plain is the type of the value itself, where nil means that it is left open.
func (f field) plain() reflect.Type {
	if t := f.value.Type(); t.Kind() == reflect.Pointer {
		return t.Elem()
	}
	return f.value.Type()
}

// fields returns the settings and sections of a struct in their order.
func fields(v reflect.Value, prefix string) []field {
	var out []field
	for i := range v.NumField() {
		tag := v.Type().Field(i).Tag
		name := tag.Get("yaml")
		if name == "-" {
			continue
		}
		if prefix != "" {
			name = prefix + "." + name
		}
		out = append(out, field{path: name, tag: tag, value: v.Field(i)})
	}
	return out
}

// walk visits every setting that is not a section; elements of lists of
// sections are visited as environments[0].id.
func walk(v reflect.Value, prefix string, visit func(field)) {
	for _, f := range fields(v, prefix) {
		switch {
		case f.section():
			walk(f.value, f.path, visit)
		case f.listed():
			for i := range f.value.Len() {
				walk(f.value.Index(i), fmt.Sprintf("%s[%d]", f.path, i), visit)
			}
		default:
			visit(f)
		}
	}
}

// setText gives a setting the value that text stands for.
func (f field) setText(text string) error {
	parsed, err := parse(f.plain(), text)
	if err != nil {
		return err
	}
	if allowed := f.oneof(); allowed != nil && !slices.Contains(allowed, text) {
		return fmt.Errorf("%q is not one of %s", text, strings.Join(allowed, ", "))
	}
	if f.value.Kind() == reflect.Pointer {
		f.value.Set(reflect.New(f.plain()))
		f.value.Elem().Set(parsed)
		return nil
	}
	f.value.Set(parsed)
	return nil
}

// parse reads text as a value of type t.
func parse(t reflect.Type, text string) (reflect.Value, error) {
	var v any
	var err error
	switch t {
	case reflect.TypeFor[time.Duration]():
		v, err = parseDuration(text)
	case reflect.TypeFor[Bytes]():
		v, err = ParseBytes(text)
	case reflect.TypeFor[int]():
		if v, err = strconv.Atoi(text); err != nil {
			err = fmt.Errorf("%q is not a whole number", text)
		}
	case reflect.TypeFor[int64]():
		if v, err = strconv.ParseInt(text, 10, 64); err != nil {
			err = fmt.Errorf("%q is not a whole number", text)
		}
	case reflect.TypeFor[float64]():
		if v, err = strconv.ParseFloat(text, 64); err != nil {
			err = fmt.Errorf("%q is not a number", text)
		}
	case reflect.TypeFor[string]():
		v = text
	default:
		panic("config: no way to read a " + t.String())
	}
	return reflect.ValueOf(v), err
}

// outside says how a value breaks its bounds, "" when it does not. Settings of
// agents have theirs in package session, which checks them wherever they come
// from; here the tags are for the documentation.
func (f field) outside() string {
	if f.value.Kind() == reflect.Pointer {
		return ""
	}
	for _, bound := range []struct {
		tag, word string
		wrong     int
	}{{"min", "less than the least", -1}, {"max", "more than the most", +1}} {
		text := f.tag.Get(bound.tag)
		if text == "" {
			continue
		}
		limit, err := parse(f.value.Type(), text)
		if err != nil {
			panic("config: bound of " + f.path + ": " + err.Error())
		}
		if compare(f.value, limit) == bound.wrong {
			return fmt.Sprintf("%s is %s that is allowed, %s", show(f.value), bound.word, text)
		}
	}
	return ""
}

func compare(a, b reflect.Value) int {
	if a.CanInt() {
		return cmp.Compare(a.Int(), b.Int())
	}
	return cmp.Compare(a.Float(), b.Float())
}

// show writes a value as the file would have it.
func show(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case time.Duration:
		return formatDuration(x)
	default:
		return fmt.Sprint(x)
	}
}

// kind names a setting's type for a person.
func (f field) kind() string {
	if allowed := f.oneof(); allowed != nil {
		return strings.Join(allowed, ", ")
	}
	switch f.plain() {
	case reflect.TypeFor[map[string]string]():
		return "names and texts"
	case reflect.TypeFor[time.Duration]():
		return "duration"
	case reflect.TypeFor[Bytes]():
		return "size"
	case reflect.TypeFor[Secret]():
		return "secret"
	case reflect.TypeFor[[]Secret]():
		return "list of secrets"
	case reflect.TypeFor[string]():
		return "text"
	case reflect.TypeFor[float64]():
		return "number"
	default:
		return "whole number"
	}
}

// want names what a setting takes, for an error.
func (f field) want() string {
	switch k := f.kind(); {
	case f.oneof() != nil:
		return "one of " + k
	case k == "text":
		return k
	case k == "duration":
		return "a duration such as 15s or 5m"
	case k == "size":
		return "a size such as 512MiB or 2GiB"
	default:
		return "a " + k
	}
}
