-- SPDX-License-Identifier: Apache-2.0
-- Gateways that may follow the control stream. `hash` is keyed; the credential is shown once.
CREATE TABLE gateways (
    name TEXT NOT NULL PRIMARY KEY,
    hash BLOB NOT NULL,
    created_by TEXT NOT NULL,
    created_at_micros BIGINT NOT NULL
);
-- Sessions that an operator registered for an address: of tests, and of clients that are no
-- sandboxes. One token each, by `jti`; the row goes when it has expired.
CREATE TABLE peer_sessions (
    id TEXT NOT NULL PRIMARY KEY,
    tenant TEXT NOT NULL REFERENCES tenants (name) ON DELETE CASCADE,
    user_id TEXT NOT NULL,
    conversation_id TEXT NOT NULL,
    operations TEXT NOT NULL,
    address TEXT NOT NULL,
    jti TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_at_micros BIGINT NOT NULL,
    expires_at_micros BIGINT NOT NULL,
    ended_at_micros BIGINT
);
CREATE INDEX peer_sessions_of_tenant ON peer_sessions (tenant, id);
