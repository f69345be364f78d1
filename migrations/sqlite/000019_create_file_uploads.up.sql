-- SPDX-License-Identifier: Apache-2.0
-- Uploads that are under way: their parts lie where nobody reads until they are complete. A complete
-- one is remembered until it would have expired, so that a repeat gets the same answer.
CREATE TABLE file_uploads (
    id TEXT NOT NULL PRIMARY KEY,
    tenant TEXT NOT NULL,
    user_id TEXT NOT NULL,
    path TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    part_bytes BIGINT NOT NULL,
    digest TEXT,
    content_type TEXT,
    mode BIGINT,
    condition TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_at_micros BIGINT NOT NULL,
    expires_at_micros BIGINT NOT NULL,
    completed_version TEXT
);
CREATE INDEX file_uploads_by_expiry ON file_uploads (expires_at_micros);
CREATE INDEX file_uploads_of_user ON file_uploads (tenant, user_id);
