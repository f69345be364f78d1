-- SPDX-License-Identifier: Apache-2.0
-- Each policy set that was ever in force, up to a bound. `files` is a JSON object of texts by name;
-- without it the tenant had no set of its own.
CREATE TABLE policy_versions (
    tenant TEXT NOT NULL REFERENCES tenants (name) ON DELETE CASCADE,
    number BIGINT NOT NULL,
    digest TEXT NOT NULL,
    author TEXT NOT NULL,
    how TEXT NOT NULL,
    files TEXT,
    bytes BIGINT NOT NULL,
    at_micros BIGINT NOT NULL,
    PRIMARY KEY (tenant, number)
);
CREATE INDEX policy_versions_digest ON policy_versions (tenant, digest);
-- What policies saw of a request, beside its record; and what both take, for the bound.
ALTER TABLE decisions ADD COLUMN evidence TEXT;
ALTER TABLE decisions ADD COLUMN bytes BIGINT NOT NULL DEFAULT 0;
CREATE INDEX decisions_at ON decisions (at_micros);
