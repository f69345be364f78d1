-- SPDX-License-Identifier: Apache-2.0
-- A file's media type, where somebody said it.
ALTER TABLE file_metadata ADD COLUMN content_type TEXT;
