-- +goose Up

-- What was set for the sandboxes of an agent. The revision only grows, so that a
-- change which was made from an older one can be told.
CREATE TABLE agents (
	id         TEXT PRIMARY KEY,
	settings   TEXT   NOT NULL,
	revision   BIGINT NOT NULL,
	changed_at BIGINT NOT NULL
);

-- What a session's sandbox was made with.
ALTER TABLE sessions ADD COLUMN profile TEXT NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN revision BIGINT NOT NULL DEFAULT 0;
CREATE INDEX sessions_by_agent ON sessions (agent, updated_at);

-- +goose Down
DROP INDEX sessions_by_agent;
ALTER TABLE sessions DROP COLUMN revision;
ALTER TABLE sessions DROP COLUMN profile;
DROP TABLE agents;
