package local

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"
)

var errClosed = errors.New("the server is closing")

type environment struct{ ID string }

func (s *Server) seedEnvironment(id string) { s.environments[id] = &environment{ID: id} }

type queue struct{}

func newQueue(time.Duration) *queue { return &queue{} }

type session struct{ Environment string }

func (se *session) closeStreams()             {}
func (se *session) storeAccess(string) string { return "" }

type Brain interface {
	Run(ctx context.Context, t *Turn) error
}
type Turn struct{}
type Scenario struct{}
type WebhookOptions struct{}
type webhookSender struct{}

func newWebhookSender(*Server, WebhookOptions) *webhookSender { return nil }

type scriptedBrain struct{}

func newScriptedBrain(*Server, []*Scenario) *scriptedBrain { return nil }

type Fault struct{ Kind, On string }
type faultKey struct{}
type faultTable struct{}

func newFaultTable() *faultTable                                                              { return nil }
func (*faultTable) take(*http.Request, caller) *Fault                                         { return nil }
func (s *Server) serveFaulty(http.ResponseWriter, *http.Request, caller, handlerFunc, *Fault) {}
func operation(method, path string) string                                                    { return method + " " + strings.Trim(path, "/") }
