-- SPDX-License-Identifier: Apache-2.0
DROP INDEX leases_of_holder;
DELETE FROM leases WHERE name LIKE '%/%';
ALTER TABLE warm_sandboxes DROP COLUMN place;
ALTER TABLE sandboxes DROP COLUMN place;
