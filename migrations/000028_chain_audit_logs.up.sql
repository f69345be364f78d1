-- SPDX-License-Identifier: Apache-2.0
-- The audit logs are chained: each line's hash covers the line and the hash before it. Here is where
-- each tenant's chain of each log ends, so that the next line finds its place.
CREATE TABLE audit_chains (
    log TEXT NOT NULL,
    tenant TEXT NOT NULL,
    hash TEXT NOT NULL,
    length BIGINT NOT NULL,
    sequence BIGINT NOT NULL,
    PRIMARY KEY (log, tenant)
);
-- Lines of a chain that was there before go on where they were.
INSERT INTO audit_chains (log, tenant, hash, length, sequence)
SELECT 'sandboxes', l.tenant, l.hash, (SELECT COUNT(*) FROM sandbox_audit_log c WHERE c.tenant = l.tenant AND c.hash IS NOT NULL), l.sequence
FROM sandbox_audit_log l
WHERE l.sequence = (SELECT MAX(m.sequence) FROM sandbox_audit_log m WHERE m.tenant = l.tenant AND m.hash IS NOT NULL);
INSERT INTO audit_chains (log, tenant, hash, length, sequence)
SELECT 'files', l.tenant, l.hash, (SELECT COUNT(*) FROM file_audit_log c WHERE c.tenant = l.tenant AND c.hash IS NOT NULL), l.sequence
FROM file_audit_log l
WHERE l.sequence = (SELECT MAX(m.sequence) FROM file_audit_log m WHERE m.tenant = l.tenant AND m.hash IS NOT NULL);
-- Places of chains that the orchestrator vouches for: `checkpoint` (it was the last line then) and
-- `cut` (all lines up to it were old, and are gone). Signed with a key that no database holds.
CREATE TABLE audit_marks (
    number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mark TEXT NOT NULL,
    installation TEXT NOT NULL,
    log TEXT NOT NULL,
    tenant TEXT NOT NULL,
    length BIGINT NOT NULL,
    sequence BIGINT NOT NULL,
    hash TEXT NOT NULL,
    at_micros BIGINT NOT NULL,
    signature TEXT NOT NULL,
    UNIQUE (mark, log, tenant, sequence)
);
CREATE INDEX file_audit_log_by_age ON file_audit_log (at_micros);
-- Lines and marks are only ever added. Lines up to a cut may go.
CREATE FUNCTION postern_refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE FUNCTION postern_refuse_audit_delete() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM audit_marks
        WHERE mark = 'cut' AND log = TG_ARGV[0] AND tenant = OLD.tenant AND sequence >= OLD.sequence)
    THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
END $$;
-- A role that may not delete has its cuts made by this: whoever owns the tables deletes what a mark
-- says is gone, and nothing else.
CREATE FUNCTION postern_cut_audit_log(which TEXT, of_tenant TEXT) RETURNS BIGINT
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
REVOKE ALL ON FUNCTION postern_cut_audit_log(TEXT, TEXT) FROM PUBLIC;
REVOKE UPDATE, DELETE, TRUNCATE ON sandbox_audit_log, file_audit_log, audit_marks FROM PUBLIC;
CREATE TRIGGER sandbox_audit_log_unchanged BEFORE UPDATE ON sandbox_audit_log
    FOR EACH ROW EXECUTE FUNCTION postern_refuse_audit_change();
CREATE TRIGGER sandbox_audit_log_whole BEFORE TRUNCATE ON sandbox_audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION postern_refuse_audit_change();
CREATE TRIGGER sandbox_audit_log_kept BEFORE DELETE ON sandbox_audit_log
    FOR EACH ROW EXECUTE FUNCTION postern_refuse_audit_delete('sandboxes');
CREATE TRIGGER file_audit_log_unchanged BEFORE UPDATE ON file_audit_log
    FOR EACH ROW EXECUTE FUNCTION postern_refuse_audit_change();
CREATE TRIGGER file_audit_log_whole BEFORE TRUNCATE ON file_audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION postern_refuse_audit_change();
CREATE TRIGGER file_audit_log_kept BEFORE DELETE ON file_audit_log
    FOR EACH ROW EXECUTE FUNCTION postern_refuse_audit_delete('files');
CREATE TRIGGER audit_marks_unchanged BEFORE UPDATE ON audit_marks
    FOR EACH ROW EXECUTE FUNCTION postern_refuse_audit_change();
CREATE TRIGGER audit_marks_whole BEFORE TRUNCATE ON audit_marks
    FOR EACH STATEMENT EXECUTE FUNCTION postern_refuse_audit_change();
CREATE TRIGGER audit_marks_kept BEFORE DELETE ON audit_marks
    FOR EACH ROW EXECUTE FUNCTION postern_refuse_audit_change();
