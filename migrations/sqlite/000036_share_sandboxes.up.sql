-- SPDX-License-Identifier: Apache-2.0
-- Where a sandbox runs: a machine with a data folder of its own, or a cluster. Orchestrators drive
-- those of their own place only. What was there before is the installation's.
ALTER TABLE sandboxes ADD COLUMN place TEXT NOT NULL DEFAULT '';
ALTER TABLE warm_sandboxes ADD COLUMN place TEXT NOT NULL DEFAULT '';
UPDATE sandboxes SET place = COALESCE((SELECT CAST(value AS TEXT) FROM installation WHERE name = 'installation'), '');
UPDATE warm_sandboxes SET place = COALESCE((SELECT CAST(value AS TEXT) FROM installation WHERE name = 'installation'), '');
