-- SPDX-License-Identifier: Apache-2.0
-- SQLite has one orchestrator: it tells nobody. The table is there so that both databases have it.
CREATE TABLE leases (
    name TEXT NOT NULL PRIMARY KEY,
    holder TEXT NOT NULL,
    fence BIGINT NOT NULL,
    until TEXT NOT NULL
);
