-- SPDX-License-Identifier: Apache-2.0
-- What gateways decided; bounded, the oldest go first.
CREATE TABLE decisions (
    id TEXT NOT NULL PRIMARY KEY,
    at_micros BIGINT NOT NULL,
    tenant TEXT,
    sandbox_id TEXT,
    verdict TEXT NOT NULL,
    code TEXT,
    record TEXT NOT NULL
);
CREATE INDEX decisions_of_tenant ON decisions (tenant, id);
CREATE INDEX decisions_of_sandbox ON decisions (sandbox_id, id);
