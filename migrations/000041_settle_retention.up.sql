-- SPDX-License-Identifier: Apache-2.0
-- Where a file lies in the archive: empty for the one that bears its path, else what keeps a later
-- version of it apart.
ALTER TABLE archived_files ADD COLUMN place TEXT NOT NULL DEFAULT '';
ALTER TABLE archived_files DROP CONSTRAINT archived_files_pkey;
ALTER TABLE archived_files ADD PRIMARY KEY (tenant, user_id, path, place);
-- Users of whom nothing is to come any more until all of theirs is gone.
CREATE TABLE user_erasures (
    tenant TEXT NOT NULL,
    user_id TEXT NOT NULL,
    begun_at_micros BIGINT NOT NULL,
    PRIMARY KEY (tenant, user_id)
);
-- Places of a chain before its newest cut prove nothing any more: they may go, and go with the cut.
CREATE FUNCTION postern_refuse_mark_delete() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM audit_marks
        WHERE mark = 'cut' AND log = OLD.log AND tenant = OLD.tenant AND sequence > OLD.sequence)
    THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
END $$;
DROP TRIGGER audit_marks_kept ON audit_marks;
CREATE TRIGGER audit_marks_kept BEFORE DELETE ON audit_marks
    FOR EACH ROW EXECUTE FUNCTION postern_refuse_mark_delete();
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
    DELETE FROM audit_marks WHERE log = which AND tenant = of_tenant AND sequence < through;
    RETURN gone;
END $$;
