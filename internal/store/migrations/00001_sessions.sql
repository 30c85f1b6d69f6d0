-- +goose Up

-- One row: the epoch of the process that owns this database. Every write checks
-- it, so a process that was replaced can no longer change anything.
CREATE TABLE fence (
	id    INTEGER PRIMARY KEY CHECK (id = 1),
	epoch BIGINT NOT NULL
);
INSERT INTO fence (id, epoch) VALUES (1, 0);

CREATE TABLE sessions (
	id            TEXT PRIMARY KEY,
	environment   TEXT   NOT NULL,
	agent         TEXT   NOT NULL DEFAULT '',
	agent_name    TEXT   NOT NULL DEFAULT '',
	agent_version BIGINT NOT NULL DEFAULT 0,
	model         TEXT   NOT NULL DEFAULT '',
	title         TEXT   NOT NULL DEFAULT '',
	phase         TEXT   NOT NULL,
	memo          TEXT   NOT NULL,
	waiting       TEXT   NOT NULL,
	backend       TEXT   NOT NULL DEFAULT '',
	sandbox       TEXT   NOT NULL DEFAULT '',
	sandbox_since BIGINT NOT NULL DEFAULT 0,
	created_at    BIGINT NOT NULL,
	updated_at    BIGINT NOT NULL,
	ended_at      BIGINT NOT NULL DEFAULT 0,
	end_reason    TEXT   NOT NULL DEFAULT ''
);
CREATE INDEX sessions_by_update ON sessions (updated_at, id);

CREATE TABLE work (
	id          TEXT PRIMARY KEY,
	session     TEXT   NOT NULL,
	environment TEXT   NOT NULL,
	state       TEXT   NOT NULL,
	secret      BLOB,
	token       TEXT   NOT NULL DEFAULT '',
	ttl         BIGINT NOT NULL DEFAULT 0,
	beat_at     BIGINT NOT NULL DEFAULT 0,
	claimed_at  BIGINT NOT NULL,
	ended_at    BIGINT NOT NULL DEFAULT 0,
	why         TEXT   NOT NULL DEFAULT ''
);
CREATE INDEX work_by_session ON work (session, claimed_at);
CREATE INDEX work_by_state ON work (state);

-- The ledger.
CREATE TABLE calls (
	session      TEXT    NOT NULL,
	id           TEXT    NOT NULL,
	seq          BIGINT  NOT NULL,
	thread       TEXT    NOT NULL DEFAULT '',
	name         TEXT    NOT NULL,
	custom       BOOLEAN NOT NULL DEFAULT FALSE,
	input        BLOB,
	permission   TEXT    NOT NULL DEFAULT '',
	processed_at BIGINT  NOT NULL DEFAULT 0,
	state        TEXT    NOT NULL,
	seen_at      BIGINT  NOT NULL DEFAULT 0,
	started_at   BIGINT  NOT NULL DEFAULT 0,
	finished_at  BIGINT  NOT NULL DEFAULT 0,
	done_at      BIGINT  NOT NULL DEFAULT 0,
	instance     TEXT    NOT NULL DEFAULT '',
	content      BLOB,
	is_error     BOOLEAN NOT NULL DEFAULT FALSE,
	reason       TEXT    NOT NULL DEFAULT '',
	PRIMARY KEY (session, id)
);
CREATE UNIQUE INDEX calls_by_seq ON calls (session, seq);

CREATE TABLE events (
	seq     INTEGER PRIMARY KEY AUTOINCREMENT,
	at      BIGINT NOT NULL,
	session TEXT   NOT NULL DEFAULT '',
	type    TEXT   NOT NULL,
	source  TEXT   NOT NULL DEFAULT '',
	data    BLOB
);
CREATE INDEX events_by_session ON events (session, seq);
CREATE UNIQUE INDEX events_by_source ON events (session, source) WHERE source <> '';

CREATE TABLE webhooks (
	id          TEXT PRIMARY KEY,
	type        TEXT   NOT NULL,
	session     TEXT   NOT NULL DEFAULT '',
	received_at BIGINT NOT NULL,
	body        BLOB   NOT NULL
);
CREATE INDEX webhooks_by_time ON webhooks (received_at);

-- +goose Down
DROP TABLE webhooks;
DROP TABLE events;
DROP TABLE calls;
DROP TABLE work;
DROP TABLE sessions;
DROP TABLE fence;
