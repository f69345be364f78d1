-- SPDX-License-Identifier: Apache-2.0
-- One row for each file of a user that object storage holds. Times are microseconds since 1970 (UTC).
CREATE TABLE file_metadata (
    tenant TEXT NOT NULL,
    user_id TEXT NOT NULL,
    path TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    digest TEXT NOT NULL,
    mode BIGINT NOT NULL,
    object_version TEXT,
    written_by TEXT NOT NULL,
    created_at_micros BIGINT NOT NULL,
    modified_at_micros BIGINT NOT NULL,
    used_at_micros BIGINT NOT NULL,
    PRIMARY KEY (tenant, user_id, path)
);
CREATE INDEX file_metadata_used ON file_metadata (tenant, used_at_micros);
