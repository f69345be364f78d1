-- SPDX-License-Identifier: Apache-2.0
-- Sandboxes that are kept ready and are nobody's yet: `making`, `ready` or `ending`. A row is there
-- before anything of the sandbox is, and goes when nothing of it is left, or when it is claimed:
-- then it becomes a row of `sandboxes` in the same transaction, and never comes back.
CREATE TABLE warm_sandboxes (
    id TEXT NOT NULL PRIMARY KEY,
    tenant TEXT NOT NULL,
    template TEXT NOT NULL,
    status TEXT NOT NULL,
    wanted TEXT NOT NULL,
    running TEXT,
    created_at_micros BIGINT NOT NULL
);
