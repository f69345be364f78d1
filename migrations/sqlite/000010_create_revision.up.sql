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
