-- SPDX-License-Identifier: Apache-2.0
-- Where a sandbox runs: a machine with a data folder of its own, or a cluster. Orchestrators drive
-- those of their own place only. What was there before is the installation's.
ALTER TABLE sandboxes ADD COLUMN place TEXT NOT NULL DEFAULT '';
ALTER TABLE warm_sandboxes ADD COLUMN place TEXT NOT NULL DEFAULT '';
UPDATE sandboxes SET place = convert_from(installation.value, 'UTF8') FROM installation WHERE installation.name = 'installation';
UPDATE warm_sandboxes SET place = convert_from(installation.value, 'UTF8') FROM installation WHERE installation.name = 'installation';
-- Who works on which sandbox is a lease, `sandbox/ID`; all of one holder are kept at once.
CREATE INDEX leases_of_holder ON leases (holder);
