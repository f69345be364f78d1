-- SPDX-License-Identifier: Apache-2.0
-- What becomes of a sandbox that is unused for too long (`destroy` or `pause`), and how long it
-- stays paused before it is destroyed; NULL: until its own end.
ALTER TABLE sandboxes ADD COLUMN on_idle TEXT NOT NULL DEFAULT 'destroy';
ALTER TABLE sandboxes ADD COLUMN paused_micros BIGINT;
