-- SPDX-License-Identifier: Apache-2.0
-- Hashes stay where they are; what vouched for them is lost.
DROP TRIGGER sandbox_audit_log_unchanged;
DROP TRIGGER sandbox_audit_log_kept;
DROP TRIGGER sandbox_audit_log_not_replaced;
DROP TRIGGER file_audit_log_unchanged;
DROP TRIGGER file_audit_log_kept;
DROP TRIGGER file_audit_log_not_replaced;
DROP TABLE audit_marks;
DROP TABLE audit_chains;
DROP INDEX file_audit_log_by_age;
