-- +goose Up

-- What a session and the platform last agreed on about the files of a memory
-- store. The row with the path '' says that the store was downloaded once.
CREATE TABLE memories (
	session TEXT NOT NULL,
	store   TEXT NOT NULL,
	path    TEXT NOT NULL,
	sha256  TEXT NOT NULL DEFAULT '',
	sent    TEXT NOT NULL DEFAULT '',
	PRIMARY KEY (session, store, path)
);

-- +goose Down
DROP TABLE memories;
