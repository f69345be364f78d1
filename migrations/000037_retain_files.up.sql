-- SPDX-License-Identifier: Apache-2.0
-- When a file was written last by us, whatever its writer said. Of what was there before that is not
-- known: as late as it can have been.
ALTER TABLE file_metadata ADD COLUMN written_at_micros BIGINT NOT NULL DEFAULT 0;
UPDATE file_metadata SET written_at_micros = GREATEST(created_at_micros, used_at_micros);
CREATE INDEX file_metadata_written ON file_metadata (tenant, written_at_micros);
-- When a sandbox brought in all that a user has.
CREATE TABLE user_uses (
    tenant TEXT NOT NULL,
    user_id TEXT NOT NULL,
    used_at_micros BIGINT NOT NULL,
    PRIMARY KEY (tenant, user_id)
);
-- Users whose files are to stay, whatever else says that they go.
CREATE TABLE user_holds (
    tenant TEXT NOT NULL,
    user_id TEXT NOT NULL,
    reason TEXT NOT NULL,
    set_by TEXT NOT NULL,
    set_at_micros BIGINT NOT NULL,
    PRIMARY KEY (tenant, user_id)
);
-- Files that retention took out of sight, by the path that they had.
CREATE TABLE archived_files (
    tenant TEXT NOT NULL,
    user_id TEXT NOT NULL,
    path TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    digest TEXT NOT NULL,
    archived_at_micros BIGINT NOT NULL,
    PRIMARY KEY (tenant, user_id, path)
);
CREATE INDEX archived_files_by_age ON archived_files (tenant, archived_at_micros);
