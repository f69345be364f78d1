-- SPDX-License-Identifier: Apache-2.0
-- Sessions of sandboxes' syncs, which carry their files: each has an id of its own and one grant, and
-- outlives its sandbox's session by the time that the last of its files takes.
CREATE TABLE sync_sessions (
    id TEXT NOT NULL PRIMARY KEY,
    sandbox_id TEXT NOT NULL,
    tenant TEXT NOT NULL,
    user_id TEXT NOT NULL,
    conversation_id TEXT NOT NULL,
    template TEXT NOT NULL,
    peer TEXT NOT NULL,
    tokens TEXT NOT NULL,
    rotate_at_micros BIGINT NOT NULL,
    last_token_until_micros BIGINT NOT NULL,
    ended_at_micros BIGINT
);
CREATE INDEX sync_sessions_of_sandbox ON sync_sessions (sandbox_id);
