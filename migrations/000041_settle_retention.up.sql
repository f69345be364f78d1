-- SPDX-License-Identifier: Apache-2.0
-- Where a file lies in the archive: empty for the one that bears its path, else what keeps a later
-- version of it apart.
ALTER TABLE archived_files ADD COLUMN place TEXT NOT NULL DEFAULT '';
ALTER TABLE archived_files DROP CONSTRAINT archived_files_pkey;
ALTER TABLE archived_files ADD PRIMARY KEY (tenant, user_id, path, place);
-- Users of whom nothing is to come any more until all of theirs is gone.
CREATE TABLE user_erasures (
    tenant TEXT NOT NULL,
    user_id TEXT NOT NULL,
    begun_at_micros BIGINT NOT NULL,
    PRIMARY KEY (tenant, user_id)
);
