package claude

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/option"
	"github.com/anthropics/anthropic-sdk-go/v2/packages/param"

	"github.com/berth-dev/berth/internal/intake"
	"github.com/berth-dev/berth/internal/session"
)

// Options say which environment a Queue serves and how to reach it.
type Options struct {
	BaseURL        string // "" means DefaultBaseURL
	EnvironmentID  string // env_…; required
	EnvironmentKey string // the environment's key; required
	// WorkerID tells pollers apart in the platform's statistics; "" makes one
	// from the host name.
	WorkerID string
	// HTTPClient may bring a transport (a proxy, a certificate pool). Its
	// Timeout is not used: every call has its own.
	HTTPClient *http.Client
	Logger     *slog.Logger // nil discards
	// StreamSilence ends a stream on which no byte has arrived for so long, so
	// that a dead connection is replaced; 0 means five minutes.
	StreamSilence time.Duration
}

// Queue is one environment's work queue. Safe for concurrent use.
type Queue struct {
	door        door
	conn        *conn // with the environment key
	environment string
	worker      string
}

var _ intake.Queue = (*Queue)(nil)

// maxBlock is the longest that the platform lets a poll wait (contract §2.2).
const maxBlock = 999 * time.Millisecond

// NewQueue opens the door to one environment. It makes no request.
func NewQueue(o Options) (*Queue, error) {
	key := bearer(o.EnvironmentKey)
	switch {
	case o.EnvironmentID == "":
		return nil, errors.New("open queue: no environment id")
	case !key.usable():
		return nil, fmt.Errorf("open queue of %s: the environment key is empty or has characters that no key has", o.EnvironmentID)
	}
	d, err := newDoor(o.BaseURL, o.HTTPClient, o.Logger, o.StreamSilence)
	if err != nil {
		return nil, fmt.Errorf("open queue of %s: %w", o.EnvironmentID, err)
	}
	d.log = d.log.With("environment", o.EnvironmentID)
	if o.WorkerID == "" {
		o.WorkerID = workerID()
	}
	return &Queue{door: d, conn: d.connect(key), environment: o.EnvironmentID, worker: o.WorkerID}, nil
}

// workerID is a name that no other process has.
func workerID() string {
	host, err := os.Hostname()
	if err != nil || !bearer(host).usable() {
		host = "berth"
	}
	var b [8]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return host + "-" + hex.EncodeToString(b[:])
}

// Environment is the id of the environment that this queue belongs to.
func (q *Queue) Environment() string { return q.environment }

// Poll asks for one item. A block of less than a millisecond returns at once; a
// longer one than the platform allows is shortened.
func (q *Queue) Poll(ctx context.Context, block time.Duration) (*session.Item, error) {
	params := anthropic.BetaEnvironmentWorkPollParams{AnthropicWorkerID: param.NewOpt(q.worker)}
	if ms := min(block, maxBlock).Milliseconds(); ms > 0 {
		params.BlockMs = param.NewOpt(ms)
	}
	answer, err := q.conn.do(ctx, "poll for work", q.conn.again(), func(ctx context.Context, opts ...option.RequestOption) error {
		_, err := q.conn.api.Beta.Environments.Work.Poll(ctx, q.environment, params, opts...)
		return err
	})
	if err != nil || isNull(answer) {
		return nil, err
	}
	return q.item(answer)
}

func (q *Queue) item(answer []byte) (*session.Item, error) {
	var work anthropic.BetaSelfHostedWork
	if err := json.Unmarshal(answer, &work); err != nil {
		return nil, fmt.Errorf("decode work item: %w", err)
	}
	if work.ID == "" {
		return nil, errors.New("decode work item: it has no id")
	}
	item := &session.Item{
		ID:          work.ID,
		Environment: work.EnvironmentID,
		Type:        string(work.Data.Type),
		Secret:      work.Secret,
	}
	if item.Environment == "" {
		item.Environment = q.environment
	}
	if item.Type == "session" {
		item.Session = work.Data.ID
	}
	return item, nil
}

// Ack claims a polled item with one request: the caller knows what a refusal
// after a lost answer means. What the platform answers with is not looked at.
func (q *Queue) Ack(ctx context.Context, workID string) error {
	_, err := q.conn.do(ctx, "acknowledge "+workID, once(q.conn.time.try), func(ctx context.Context, opts ...option.RequestOption) error {
		_, err := q.conn.api.Beta.Environments.Work.Ack(ctx, workID,
			anthropic.BetaEnvironmentWorkAckParams{EnvironmentID: q.environment}, opts...)
		return err
	})
	return err
}

// ForceStop ends an item that no session will run, with the environment key.
func (q *Queue) ForceStop(ctx context.Context, workID string) error {
	return q.conn.stop(ctx, q.environment, workID, true)
}

// Stats reads the depth of the queue.
func (q *Queue) Stats(ctx context.Context) (intake.Stats, error) {
	answer, err := q.conn.do(ctx, "read queue statistics", q.conn.again(), func(ctx context.Context, opts ...option.RequestOption) error {
		_, err := q.conn.api.Beta.Environments.Work.Stats(ctx, q.environment, anthropic.BetaEnvironmentWorkStatsParams{}, opts...)
		return err
	})
	if err != nil {
		return intake.Stats{}, err
	}
	var s anthropic.BetaSelfHostedWorkQueueStats
	if err := json.Unmarshal(answer, &s); err != nil {
		return intake.Stats{}, fmt.Errorf("decode queue statistics: %w", err)
	}
	oldest, _ := time.Parse(time.RFC3339Nano, s.OldestQueuedAt) // null or unknown: zero
	return intake.Stats{Depth: s.Depth, Pending: s.Pending, OldestQueued: oldest, Pollers: s.WorkersPolling}, nil
}

// Platform opens the door for one item. An item whose secret has no token is
// served with the environment key, and the log says so once per item.
func (q *Queue) Platform(item session.Item) session.Platform {
	environment := item.Environment
	if environment == "" {
		environment = q.environment
	}
	p := &platform{conn: q.conn, session: item.Session, environment: environment, work: item.ID}
	if token := sessionsToken(item.Secret); token != "" {
		p.conn, p.hasToken = q.door.connect(bearer(token)), true
	} else {
		q.door.log.Warn("work item has no sessions token; using the environment key",
			"work", item.ID, "session", item.Session)
	}
	return p
}

// Visitor is a session as one sees it who works on it not.
type Visitor interface {
	Reader
	session.SkillSource
}

// Session opens one session of the environment for reading, with the environment
// key: for sessions that nobody works on.
func (q *Queue) Session(id string) Visitor {
	return &platform{conn: q.conn, session: id, environment: q.environment}
}
