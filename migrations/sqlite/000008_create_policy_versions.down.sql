-- SPDX-License-Identifier: Apache-2.0
DROP INDEX decisions_at;
ALTER TABLE decisions DROP COLUMN bytes;
ALTER TABLE decisions DROP COLUMN evidence;
DROP TABLE policy_versions;
