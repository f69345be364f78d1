-- SPDX-License-Identifier: Apache-2.0
DROP TABLE user_erasures;
-- Later versions in the archive are forgotten; their objects stay until their user is erased.
DELETE FROM archived_files WHERE place <> '';
ALTER TABLE archived_files DROP CONSTRAINT archived_files_pkey;
ALTER TABLE archived_files DROP COLUMN place;
ALTER TABLE archived_files ADD PRIMARY KEY (tenant, user_id, path);
