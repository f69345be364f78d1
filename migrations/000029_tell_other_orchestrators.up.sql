-- SPDX-License-Identifier: Apache-2.0
-- Orchestrators on one database hear of each other's changes: a notice says who changed what kind of
-- thing by which name, never to what. It comes when the change is committed.
CREATE FUNCTION postern_notify() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed RECORD;
BEGIN
    IF TG_OP = 'DELETE' THEN
        changed := OLD;
    ELSE
        changed := NEW;
    END IF;
    PERFORM pg_notify('postern', current_setting('application_name') || ' ' || TG_ARGV[0] || ' '
        || (to_jsonb(changed) ->> TG_ARGV[1]));
    RETURN NULL;
END $$;
CREATE TRIGGER tenants_told AFTER INSERT OR UPDATE OR DELETE ON tenants
    FOR EACH ROW EXECUTE FUNCTION postern_notify('tenant', 'name');
CREATE TRIGGER sessions_told AFTER INSERT OR UPDATE OR DELETE ON sessions
    FOR EACH ROW EXECUTE FUNCTION postern_notify('session', 'sandbox_id');
CREATE TRIGGER sandboxes_told AFTER UPDATE OF status, labels ON sandboxes
    FOR EACH ROW EXECUTE FUNCTION postern_notify('session', 'id');
CREATE TRIGGER peer_sessions_told AFTER INSERT OR UPDATE OR DELETE ON peer_sessions
    FOR EACH ROW EXECUTE FUNCTION postern_notify('session', 'id');
CREATE TRIGGER gateways_told AFTER INSERT OR UPDATE OR DELETE ON gateways
    FOR EACH ROW EXECUTE FUNCTION postern_notify('gateway', 'name');
-- Work that one orchestrator does for all: whoever holds the lease until it ends. `fence` rises each
-- time it passes to another.
CREATE TABLE leases (
    name TEXT NOT NULL PRIMARY KEY,
    holder TEXT NOT NULL,
    fence BIGINT NOT NULL,
    until TIMESTAMPTZ NOT NULL
);
