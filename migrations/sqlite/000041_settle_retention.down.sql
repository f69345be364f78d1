-- SPDX-License-Identifier: Apache-2.0
DROP TRIGGER audit_marks_kept;
CREATE TRIGGER audit_marks_kept BEFORE DELETE ON audit_marks
BEGIN SELECT RAISE(ABORT, 'audit_marks is append-only'); END;
DROP TABLE user_erasures;
-- Later versions in the archive are forgotten; their objects stay until their user is erased.
CREATE TABLE archived_files_before (
    tenant TEXT NOT NULL,
    user_id TEXT NOT NULL,
    path TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    digest TEXT NOT NULL,
    archived_at_micros BIGINT NOT NULL,
    PRIMARY KEY (tenant, user_id, path)
);
INSERT INTO archived_files_before (tenant, user_id, path, size_bytes, digest, archived_at_micros)
SELECT tenant, user_id, path, size_bytes, digest, archived_at_micros FROM archived_files WHERE place = '';
DROP TABLE archived_files;
ALTER TABLE archived_files_before RENAME TO archived_files;
CREATE INDEX archived_files_by_age ON archived_files (tenant, archived_at_micros);
