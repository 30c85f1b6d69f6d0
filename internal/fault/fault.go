// Package fault is the closed list of errors that may reach a person or a
// program outside Berth. Everything else is "internal": its text stays in the
// log. A fault carries a stable code, a message, the field that it is about
// (when there is one) and the next step to take.
package fault

import (
	"errors"
	"fmt"
)

// Code names a kind of fault. The set is closed: Codes lists it, and the HTTP
// and exit tables in this package cover all of it.
type Code string

// The codes. Their texts are part of the public API and never change meaning.
const (
	Invalid     Code = "invalid"      // the input is wrong: the field says where
	Unsigned    Code = "unauthorized" // no credential, or one that is not valid
	Refused     Code = "refused"      // understood, and not allowed
	NotFound    Code = "not_found"    // no such thing
	Conflict    Code = "conflict"     // the thing is in a state that forbids this
	TooLarge    Code = "too_large"    // a bound of size or count was exceeded
	Busy        Code = "busy"         // no capacity now; the same call may succeed later
	Unsupported Code = "unsupported"  // this backend or host cannot do it
	Unavailable Code = "unavailable"  // something that Berth depends on does not answer
	Timeout     Code = "timeout"      // a bound of time was exceeded
	Gone        Code = "gone"         // it existed and was ended
	Internal    Code = "internal"     // a defect of Berth or of its host
)

// Error is a coded error. The zero value is not useful; make one with New or
// Wrap. It is immutable once returned.
type Error struct {
	Code    Code
	Message string // one sentence for a person, lower case, no secret in it
	Field   string // the input field or configuration key, if one is to blame
	Next    string // what to do about it, as an instruction
	Err     error  // the cause, for the log; never shown to a client
}

// New returns a fault with a message made by fmt.Sprintf.
func New(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Wrap returns a fault that keeps err as its cause.
func Wrap(err error, code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...), Err: err}
}

// WithNext returns a copy of e that tells the reader what to do.
func (e *Error) WithNext(format string, args ...any) *Error {
	c := *e
	c.Next = fmt.Sprintf(format, args...)
	return &c
}

// WithField returns a copy of e that names the field to blame.
func (e *Error) WithField(field string) *Error {
	c := *e
	c.Field = field
	return &c
}

// Error joins field, message, cause and next step into one line.
func (e *Error) Error() string {
	s := e.Message
	if e.Field != "" {
		s = e.Field + ": " + s
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	if e.Next != "" {
		s += "; " + e.Next
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is a fault with the same code, so that
// errors.Is(err, fault.NotFound.Err()) reads naturally.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && t.Message == ""
}

// Err returns a bare fault of this code for comparison with errors.Is.
func (c Code) Err() error { return &Error{Code: c} }

// CodeOf returns the code of the outermost fault in err's chain, Internal when
// there is none, and "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return Internal
}

// Public returns the fault in err's chain without its cause, or an Internal
// fault with a constant message: the only form that may be sent to a client.
func Public(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok && e.Code != Internal {
		c := *e
		c.Err = nil
		return &c
	}
	return &Error{Code: Internal, Message: "an internal error occurred", Next: "see the server's log"}
}
