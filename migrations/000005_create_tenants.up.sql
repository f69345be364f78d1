-- SPDX-License-Identifier: Apache-2.0
-- Who owns what. `owner` is `api` or `folder`; `owner_place` says which folder.
CREATE TABLE tenants (
    name TEXT NOT NULL PRIMARY KEY,
    owner TEXT NOT NULL,
    owner_place TEXT NOT NULL,
    has_policies BIGINT NOT NULL,
    version BIGINT NOT NULL,
    created_at_micros BIGINT NOT NULL
);
-- Backends, policies, filters, templates and limits: `body` is the JSON that the API shows.
CREATE TABLE resources (
    tenant TEXT NOT NULL REFERENCES tenants (name) ON DELETE CASCADE,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    body TEXT NOT NULL,
    component BYTEA,
    digest TEXT NOT NULL,
    updated_at_micros BIGINT NOT NULL,
    PRIMARY KEY (tenant, kind, name)
);
-- Values are sealed with the data key, with tenant and name as associated data.
CREATE TABLE secrets (
    tenant TEXT NOT NULL REFERENCES tenants (name) ON DELETE CASCADE,
    name TEXT NOT NULL,
    sealed BYTEA NOT NULL,
    version BIGINT NOT NULL,
    updated_at_micros BIGINT NOT NULL,
    PRIMARY KEY (tenant, name)
);
-- `hash` is keyed; the key itself is shown once and never stored. No tenant: the whole installation.
CREATE TABLE api_keys (
    id TEXT NOT NULL PRIMARY KEY,
    tenant TEXT REFERENCES tenants (name) ON DELETE CASCADE,
    role TEXT NOT NULL,
    label TEXT NOT NULL,
    operations TEXT,
    hash BYTEA NOT NULL,
    created_by TEXT NOT NULL,
    created_at_micros BIGINT NOT NULL
);
CREATE INDEX api_keys_of_tenant ON api_keys (tenant, id);
