-- SPDX-License-Identifier: Apache-2.0
-- Hashes stay where they are; what vouched for them is lost.
DROP TRIGGER sandbox_audit_log_unchanged ON sandbox_audit_log;
DROP TRIGGER sandbox_audit_log_kept ON sandbox_audit_log;
DROP TRIGGER sandbox_audit_log_whole ON sandbox_audit_log;
DROP TRIGGER file_audit_log_unchanged ON file_audit_log;
DROP TRIGGER file_audit_log_kept ON file_audit_log;
DROP TRIGGER file_audit_log_whole ON file_audit_log;
DROP TABLE audit_marks;
DROP TABLE audit_chains;
DROP INDEX file_audit_log_by_age;
DROP FUNCTION postern_cut_audit_log(TEXT, TEXT);
DROP FUNCTION postern_refuse_audit_delete();
DROP FUNCTION postern_refuse_audit_change();
