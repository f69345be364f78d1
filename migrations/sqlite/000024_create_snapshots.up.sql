-- SPDX-License-Identifier: Apache-2.0
-- Snapshots of sandboxes: what is known of each; its content is a sealed file of the orchestrator's.
CREATE TABLE snapshots (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL REFERENCES tenants (name) ON DELETE CASCADE,
    user_id TEXT NOT NULL,
    sandbox_id TEXT NOT NULL,
    template TEXT NOT NULL,
    labels TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    at_micros BIGINT NOT NULL
);
CREATE INDEX snapshots_of_tenant ON snapshots (tenant, id);
