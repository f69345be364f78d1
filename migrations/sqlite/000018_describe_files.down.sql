-- SPDX-License-Identifier: Apache-2.0
ALTER TABLE file_metadata DROP COLUMN content_type;
