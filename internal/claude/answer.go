package claude

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/option"

	"github.com/berth-dev/berth/internal/session"
)

// maxSend is the largest request that the platform takes (contract §4.3).
const maxSend = 32_000_000

// sendRate is the slowest line, in bytes per second, on which a large result
// still arrives in time.
const sendRate = 128 << 10

// Answer sends results in one request, once. Results that the platform would
// refuse by their form alone are refused here in its own words, so that they
// are not sent again and again.
func (p *platform) Answer(ctx context.Context, answers ...session.Answer) error {
	if len(answers) == 0 {
		return nil
	}
	body, err := encodeAnswers(answers)
	if err != nil {
		return fmt.Errorf("send results to %s: %w", p.session, err)
	}
	try := p.conn.time.send + time.Duration(len(body)/sendRate)*time.Second
	return p.conn.post(ctx, "send results to "+p.session, p.session, once(try), body)
}

// post sends events that are encoded already.
func (c *conn) post(ctx context.Context, what, session string, p plan, body []byte) error {
	_, err := c.do(ctx, what, p, func(ctx context.Context, opts ...option.RequestOption) error {
		opts = append(opts, option.WithRequestBody("application/json", body))
		_, err := c.api.Beta.Sessions.Events.Send(ctx, session, anthropic.BetaSessionEventSendParams{}, opts...)
		return err
	})
	return err
}

// encodeAnswers writes the request's body. The content is passed through byte
// for byte, so that the same answers always make the same request.
func encodeAnswers(answers []session.Answer) ([]byte, error) {
	b := bytes.NewBufferString(`{"events":[`)
	for n, a := range answers {
		if n > 0 {
			b.WriteByte(',')
		}
		kind, ref := "user.tool_result", "tool_use_id"
		if a.Custom {
			kind, ref = "user.custom_tool_result", "custom_tool_use_id"
		}
		id, _ := json.Marshal(a.Call) // a string cannot fail
		fmt.Fprintf(b, `{"type":"%s","%s":%s,"is_error":%s`, kind, ref, id, strconv.FormatBool(a.IsError))
		if !isNull(a.Content) {
			if !json.Valid(a.Content) {
				return nil, notSent(http.StatusBadRequest, "invalid_request_error", "the content of the result for %s is not JSON", a.Call)
			}
			b.WriteString(`,"content":`)
			b.Write(a.Content)
		}
		b.WriteByte('}')
	}
	b.WriteString(`]}`)
	if b.Len() > maxSend {
		return nil, notSent(http.StatusRequestEntityTooLarge, "request_too_large",
			"%d bytes of results exceed the platform's limit of %d", b.Len(), maxSend)
	}
	return b.Bytes(), nil
}

// notSent is the refusal that the platform would give.
func notSent(status int, kind, format string, args ...any) error {
	return &session.Refusal{Status: status, Type: kind, Message: "not sent: " + fmt.Sprintf(format, args...)}
}
