-- SPDX-License-Identifier: Apache-2.0
-- What create calls with an `Idempotency-Key` got: for a day, a repeat gets the same. `key` and
-- `fingerprint` are keyed digests, of the header and of what the call asked for.
CREATE TABLE idempotency_keys (
    tenant TEXT NOT NULL REFERENCES tenants (name) ON DELETE CASCADE,
    key TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    sandbox_id TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    status BIGINT NOT NULL,
    at_micros BIGINT NOT NULL,
    PRIMARY KEY (tenant, key)
);
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (tenant, at_micros, key);
CREATE INDEX idempotency_keys_of_sandbox ON idempotency_keys (sandbox_id);
