-- SPDX-License-Identifier: Apache-2.0
-- What happened to files, by whom, in which sandbox. Rows are only ever added.
CREATE TABLE file_audit_log (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    at_micros BIGINT NOT NULL,
    tenant TEXT NOT NULL,
    user_id TEXT NOT NULL,
    path TEXT NOT NULL,
    action TEXT NOT NULL,
    actor TEXT NOT NULL,
    sandbox_id TEXT,
    decision_id TEXT,
    digest TEXT,
    size_bytes BIGINT,
    previous_hash TEXT,
    hash TEXT
);
CREATE INDEX file_audit_log_of_tenant ON file_audit_log (tenant, sequence);
CREATE INDEX file_audit_log_of_user ON file_audit_log (tenant, user_id, sequence);
