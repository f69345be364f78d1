-- SPDX-License-Identifier: Apache-2.0
-- One number over all tenants that rises with each change of a configuration or a secret: what
-- gateways are told carries it, and what is lower than what they have comes too late.
CREATE TABLE revision (
    only_row BIGINT NOT NULL PRIMARY KEY,
    value BIGINT NOT NULL
);
INSERT INTO revision (only_row, value) VALUES (1, 0);
ALTER TABLE tenants ADD COLUMN revision BIGINT NOT NULL DEFAULT 0;
-- Names of tenants that are no more. They are never given again: rows, files and tokens of the one
-- before would be the next one's. `erased_at_micros` is set once its files are gone.
CREATE TABLE removed_tenants (
    name TEXT NOT NULL PRIMARY KEY,
    removed_at_micros BIGINT NOT NULL,
    erased_at_micros BIGINT
);
-- What of a part is shown to nobody, sealed with the data key: the values of a template's `env`.
ALTER TABLE resources ADD COLUMN sealed BYTEA;
-- What is asked all the time must not read what ended long ago, and what is forgotten in the end
-- is found by its age.
CREATE INDEX sandboxes_live_by_age ON sandboxes (created_at_micros)
    WHERE status NOT IN ('destroyed', 'failed');
CREATE INDEX sandboxes_ended ON sandboxes (ended_at_micros) WHERE ended_at_micros IS NOT NULL;
CREATE INDEX sandboxes_by_age ON sandboxes (created_at_micros, id);
CREATE INDEX sandbox_audit_log_by_age ON sandbox_audit_log (at_micros);
