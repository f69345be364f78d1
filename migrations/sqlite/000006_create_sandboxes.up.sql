-- SPDX-License-Identifier: Apache-2.0
-- Every sandbox that there is or was. `outcome` is where one that is `destroying` will end.
-- `env_sealed` is wiped when it ends.
CREATE TABLE sandboxes (
    id TEXT NOT NULL PRIMARY KEY,
    tenant TEXT NOT NULL,
    user_id TEXT NOT NULL,
    conversation_id TEXT NOT NULL,
    status TEXT NOT NULL,
    outcome TEXT,
    reason TEXT,
    template TEXT NOT NULL,
    operations TEXT NOT NULL,
    claims TEXT NOT NULL,
    labels TEXT NOT NULL,
    env_sealed BLOB,
    env_digest TEXT NOT NULL,
    wanted TEXT NOT NULL,
    running TEXT,
    created_by TEXT NOT NULL,
    created_at_micros BIGINT NOT NULL,
    expires_at_micros BIGINT NOT NULL,
    idle_micros BIGINT NOT NULL,
    idle_at_micros BIGINT NOT NULL,
    ended_at_micros BIGINT
);
-- INVARIANT: one live sandbox for each conversation of a tenant, whoever asks at the same time.
CREATE UNIQUE INDEX sandboxes_live ON sandboxes (tenant, conversation_id)
    WHERE status NOT IN ('destroyed', 'failed');
CREATE INDEX sandboxes_of_tenant ON sandboxes (tenant, created_at_micros, id);
CREATE INDEX sandboxes_status ON sandboxes (status);
-- The tokens of each session that gateways accept, by `jti`: the token itself is never stored.
-- A session with `ended_at_micros` is refused; its row goes when its last token has expired.
CREATE TABLE sessions (
    sandbox_id TEXT NOT NULL PRIMARY KEY REFERENCES sandboxes (id) ON DELETE CASCADE,
    peer TEXT NOT NULL,
    tokens TEXT NOT NULL,
    expires_at_micros BIGINT NOT NULL,
    rotate_at_micros BIGINT NOT NULL,
    last_token_until_micros BIGINT NOT NULL,
    ended_at_micros BIGINT
);
