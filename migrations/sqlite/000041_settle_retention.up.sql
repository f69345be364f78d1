-- SPDX-License-Identifier: Apache-2.0
-- Where a file lies in the archive: empty for the one that bears its path, else what keeps a later
-- version of it apart.
CREATE TABLE archived_files_by_place (
    tenant TEXT NOT NULL,
    user_id TEXT NOT NULL,
    path TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    digest TEXT NOT NULL,
    archived_at_micros BIGINT NOT NULL,
    place TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (tenant, user_id, path, place)
);
INSERT INTO archived_files_by_place (tenant, user_id, path, size_bytes, digest, archived_at_micros)
SELECT tenant, user_id, path, size_bytes, digest, archived_at_micros FROM archived_files;
DROP TABLE archived_files;
ALTER TABLE archived_files_by_place RENAME TO archived_files;
CREATE INDEX archived_files_by_age ON archived_files (tenant, archived_at_micros);
-- Users of whom nothing is to come any more until all of theirs is gone.
CREATE TABLE user_erasures (
    tenant TEXT NOT NULL,
    user_id TEXT NOT NULL,
    begun_at_micros BIGINT NOT NULL,
    PRIMARY KEY (tenant, user_id)
);
-- Places of a chain before its newest cut prove nothing any more: they may go, and go with the cut.
DROP TRIGGER audit_marks_kept;
CREATE TRIGGER audit_marks_kept BEFORE DELETE ON audit_marks
WHEN NOT EXISTS (SELECT 1 FROM audit_marks
    WHERE mark = 'cut' AND log = OLD.log AND tenant = OLD.tenant AND sequence > OLD.sequence)
BEGIN SELECT RAISE(ABORT, 'audit_marks is append-only'); END;
