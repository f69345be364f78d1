-- SPDX-License-Identifier: Apache-2.0
-- The deadline of a sandbox that was told of before it came; NULL: none yet.
ALTER TABLE sandboxes ADD COLUMN told_deadline_micros BIGINT;
