-- SPDX-License-Identifier: Apache-2.0
DROP TABLE archived_files;
DROP TABLE user_holds;
DROP TABLE user_uses;
DROP INDEX file_metadata_written;
ALTER TABLE file_metadata DROP COLUMN written_at_micros;
