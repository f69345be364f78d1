-- SPDX-License-Identifier: Apache-2.0
ALTER TABLE snapshots DROP COLUMN memory;
ALTER TABLE sandboxes DROP COLUMN kept;
