-- SPDX-License-Identifier: Apache-2.0
-- What happened to sandboxes and to what a tenant owns. Rows are only ever added, each in the
-- transaction that it describes.
CREATE TABLE sandbox_audit_log (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    at_micros BIGINT NOT NULL,
    tenant TEXT NOT NULL,
    action TEXT NOT NULL,
    actor TEXT NOT NULL,
    sandbox_id TEXT,
    user_id TEXT,
    conversation_id TEXT,
    subject TEXT,
    from_status TEXT,
    to_status TEXT,
    reason TEXT,
    request_id TEXT,
    previous_hash TEXT,
    hash TEXT
);
CREATE INDEX sandbox_audit_log_of_tenant ON sandbox_audit_log (tenant, sequence);
CREATE INDEX sandbox_audit_log_of_sandbox ON sandbox_audit_log (sandbox_id, sequence);
