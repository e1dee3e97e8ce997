"""The journal's tables, and the statements that its writer lives on."""

from __future__ import annotations

SCHEMA = 2

CREATE = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS verdict (
    seq INTEGER PRIMARY KEY,
    topic TEXT NOT NULL,
    kind TEXT NOT NULL,
    camera TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    frame_id INTEGER NOT NULL,
    label TEXT NOT NULL,
    reason TEXT NOT NULL,
    part_id TEXT NOT NULL,
    t_commit_utc_ns INTEGER NOT NULL,
    body BLOB NOT NULL,
    UNIQUE (kind, camera, epoch, frame_id)
);
CREATE INDEX IF NOT EXISTS verdict_topic ON verdict (topic, seq);
CREATE INDEX IF NOT EXISTS verdict_time ON verdict (t_commit_utc_ns);
CREATE INDEX IF NOT EXISTS verdict_part ON verdict (part_id) WHERE kind <> 'frame';
CREATE TABLE IF NOT EXISTS stream (
    number INTEGER PRIMARY KEY,
    stream_id TEXT NOT NULL UNIQUE,
    first_seq INTEGER NOT NULL
);
"""
# From topic to topic along the index: a GROUP BY would read all of it, millions of rows a day.
LAST_OF_TOPICS = """
WITH RECURSIVE found (topic) AS (
    SELECT MIN(topic) FROM verdict
    UNION ALL
    SELECT (SELECT MIN(topic) FROM verdict WHERE topic > found.topic)
    FROM found WHERE found.topic IS NOT NULL
)
SELECT topic, (SELECT MAX(seq) FROM verdict WHERE verdict.topic = found.topic)
FROM found WHERE topic IS NOT NULL
"""
# A seq that is taken already is an error; a frame that has its verdict is not.
INSERT = """
INSERT INTO verdict VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (kind, camera, epoch, frame_id) DO NOTHING
"""
