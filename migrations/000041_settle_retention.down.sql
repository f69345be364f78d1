-- SPDX-License-Identifier: Apache-2.0
DROP TRIGGER audit_marks_kept ON audit_marks;
CREATE TRIGGER audit_marks_kept BEFORE DELETE ON audit_marks
    FOR EACH ROW EXECUTE FUNCTION postern_refuse_audit_change();
DROP FUNCTION postern_refuse_mark_delete();
CREATE OR REPLACE FUNCTION postern_cut_audit_log(which TEXT, of_tenant TEXT) RETURNS BIGINT
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    through BIGINT;
    gone BIGINT;
BEGIN
    SELECT MAX(sequence) INTO through FROM audit_marks
        WHERE mark = 'cut' AND log = which AND tenant = of_tenant;
    IF which = 'files' THEN
        DELETE FROM file_audit_log WHERE tenant = of_tenant AND sequence <= through;
    ELSE
        DELETE FROM sandbox_audit_log WHERE tenant = of_tenant AND sequence <= through;
    END IF;
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END $$;
DROP TABLE user_erasures;
-- Later versions in the archive are forgotten; their objects stay until their user is erased.
DELETE FROM archived_files WHERE place <> '';
ALTER TABLE archived_files DROP CONSTRAINT archived_files_pkey;
ALTER TABLE archived_files DROP COLUMN place;
ALTER TABLE archived_files ADD PRIMARY KEY (tenant, user_id, path);
