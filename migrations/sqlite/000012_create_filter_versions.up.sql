-- SPDX-License-Identifier: Apache-2.0
-- Components by the digest of their bytes.
CREATE TABLE filter_components (
    tenant TEXT NOT NULL REFERENCES tenants (name) ON DELETE CASCADE,
    digest TEXT NOT NULL,
    component BLOB NOT NULL,
    PRIMARY KEY (tenant, digest)
);
-- What was pushed of each filter. `version` only rises, also over removal and rollback; the greatest
-- with `activated_at_micros` (0: never) is in force while the filter is among the tenant's resources.
CREATE TABLE filter_versions (
    tenant TEXT NOT NULL REFERENCES tenants (name) ON DELETE CASCADE,
    name TEXT NOT NULL,
    version BIGINT NOT NULL,
    body TEXT NOT NULL,
    component TEXT NOT NULL,
    digest TEXT NOT NULL,
    pushed_at_micros BIGINT NOT NULL,
    activated_at_micros BIGINT NOT NULL,
    PRIMARY KEY (tenant, name, version)
);
