-- SPDX-License-Identifier: Apache-2.0
DROP INDEX sandbox_audit_log_by_age;
DROP INDEX sandboxes_by_age;
DROP INDEX sandboxes_ended;
DROP INDEX sandboxes_live_by_age;
ALTER TABLE resources DROP COLUMN sealed;
DROP TABLE removed_tenants;
ALTER TABLE tenants DROP COLUMN revision;
DROP TABLE revision;
