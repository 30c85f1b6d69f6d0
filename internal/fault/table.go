package fault

import "net/http"

// outcome is one row of the table that maps codes to the outside.
type outcome struct {
	status int // HTTP
	exit   int // process
}

// Exit codes of the command line. They are documented in docs/cli.md.
const (
	ExitOK       = 0
	ExitFailed   = 1
	ExitUsage    = 2
	ExitNotFound = 3
	ExitRefused  = 4
)

var table = map[Code]outcome{
	Invalid:     {http.StatusBadRequest, ExitUsage},
	Unsigned:    {http.StatusUnauthorized, ExitRefused},
	Refused:     {http.StatusForbidden, ExitRefused},
	NotFound:    {http.StatusNotFound, ExitNotFound},
	Conflict:    {http.StatusConflict, ExitFailed},
	TooLarge:    {http.StatusRequestEntityTooLarge, ExitFailed},
	Busy:        {http.StatusTooManyRequests, ExitFailed},
	Unsupported: {http.StatusNotImplemented, ExitRefused},
	Unavailable: {http.StatusServiceUnavailable, ExitFailed},
	Timeout:     {http.StatusGatewayTimeout, ExitFailed},
	Gone:        {http.StatusGone, ExitNotFound},
	Internal:    {http.StatusInternalServerError, ExitFailed},
}

// Codes returns every code, in no particular order.
func Codes() []Code {
	codes := make([]Code, 0, len(table))
	for c := range table {
		codes = append(codes, c)
	}
	return codes
}

// Status returns the HTTP status for a code; unknown codes are 500.
func Status(c Code) int {
	if o, ok := table[c]; ok {
		return o.status
	}
	return http.StatusInternalServerError
}

// Exit returns the process exit code for err: ExitOK for nil.
func Exit(err error) int {
	if err == nil {
		return ExitOK
	}
	if o, ok := table[CodeOf(err)]; ok {
		return o.exit
	}
	return ExitFailed
}

// FromStatus returns the code for an HTTP status received from Berth's own API,
// the inverse of Status.
func FromStatus(status int) Code {
	for c, o := range table {
		if o.status == status {
			return c
		}
	}
	return Internal
}
