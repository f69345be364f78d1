-- SPDX-License-Identifier: Apache-2.0
-- The audit logs are chained: each line's hash covers the line and the hash before it. Here is where
-- each tenant's chain of each log ends, so that the next line finds its place.
CREATE TABLE audit_chains (
    log TEXT NOT NULL,
    tenant TEXT NOT NULL,
    hash TEXT NOT NULL,
    length BIGINT NOT NULL,
    sequence BIGINT NOT NULL,
    PRIMARY KEY (log, tenant)
);
-- Lines of a chain that was there before go on where they were.
INSERT INTO audit_chains (log, tenant, hash, length, sequence)
SELECT 'sandboxes', l.tenant, l.hash, (SELECT COUNT(*) FROM sandbox_audit_log c WHERE c.tenant = l.tenant AND c.hash IS NOT NULL), l.sequence
FROM sandbox_audit_log l
WHERE l.sequence = (SELECT MAX(m.sequence) FROM sandbox_audit_log m WHERE m.tenant = l.tenant AND m.hash IS NOT NULL);
INSERT INTO audit_chains (log, tenant, hash, length, sequence)
SELECT 'files', l.tenant, l.hash, (SELECT COUNT(*) FROM file_audit_log c WHERE c.tenant = l.tenant AND c.hash IS NOT NULL), l.sequence
FROM file_audit_log l
WHERE l.sequence = (SELECT MAX(m.sequence) FROM file_audit_log m WHERE m.tenant = l.tenant AND m.hash IS NOT NULL);
-- Places of chains that the orchestrator vouches for: `checkpoint` (it was the last line then) and
-- `cut` (all lines up to it were old, and are gone). Signed with a key that no database holds.
CREATE TABLE audit_marks (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    mark TEXT NOT NULL,
    installation TEXT NOT NULL,
    log TEXT NOT NULL,
    tenant TEXT NOT NULL,
    length BIGINT NOT NULL,
    sequence BIGINT NOT NULL,
    hash TEXT NOT NULL,
    at_micros BIGINT NOT NULL,
    signature TEXT NOT NULL,
    UNIQUE (mark, log, tenant, sequence)
);
CREATE INDEX file_audit_log_by_age ON file_audit_log (at_micros);
-- Lines and marks are only ever added. Lines up to a cut may go.
CREATE TRIGGER sandbox_audit_log_unchanged BEFORE UPDATE ON sandbox_audit_log
BEGIN SELECT RAISE(ABORT, 'sandbox_audit_log is append-only'); END;
CREATE TRIGGER sandbox_audit_log_kept BEFORE DELETE ON sandbox_audit_log
WHEN NOT EXISTS (SELECT 1 FROM audit_marks
    WHERE mark = 'cut' AND log = 'sandboxes' AND tenant = OLD.tenant AND sequence >= OLD.sequence)
BEGIN SELECT RAISE(ABORT, 'sandbox_audit_log is append-only'); END;
CREATE TRIGGER sandbox_audit_log_not_replaced BEFORE INSERT ON sandbox_audit_log
WHEN EXISTS (SELECT 1 FROM sandbox_audit_log WHERE id = NEW.id OR sequence = NEW.sequence)
BEGIN SELECT RAISE(ABORT, 'sandbox_audit_log is append-only'); END;
CREATE TRIGGER file_audit_log_unchanged BEFORE UPDATE ON file_audit_log
BEGIN SELECT RAISE(ABORT, 'file_audit_log is append-only'); END;
CREATE TRIGGER file_audit_log_kept BEFORE DELETE ON file_audit_log
WHEN NOT EXISTS (SELECT 1 FROM audit_marks
    WHERE mark = 'cut' AND log = 'files' AND tenant = OLD.tenant AND sequence >= OLD.sequence)
BEGIN SELECT RAISE(ABORT, 'file_audit_log is append-only'); END;
CREATE TRIGGER file_audit_log_not_replaced BEFORE INSERT ON file_audit_log
WHEN EXISTS (SELECT 1 FROM file_audit_log WHERE id = NEW.id OR sequence = NEW.sequence)
BEGIN SELECT RAISE(ABORT, 'file_audit_log is append-only'); END;
CREATE TRIGGER audit_marks_unchanged BEFORE UPDATE ON audit_marks
BEGIN SELECT RAISE(ABORT, 'audit_marks is append-only'); END;
CREATE TRIGGER audit_marks_kept BEFORE DELETE ON audit_marks
BEGIN SELECT RAISE(ABORT, 'audit_marks is append-only'); END;
