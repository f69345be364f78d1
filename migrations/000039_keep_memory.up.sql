-- SPDX-License-Identifier: Apache-2.0
-- What is known of pictures of memory: those of stopped sandboxes, and those in snapshots.
ALTER TABLE sandboxes ADD COLUMN memory TEXT;
ALTER TABLE snapshots ADD COLUMN memory TEXT;
