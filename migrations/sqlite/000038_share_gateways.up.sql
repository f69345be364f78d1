-- SPDX-License-Identifier: Apache-2.0
-- SQLite has one orchestrator, which has nobody to tell. The table is there so that both databases have it.
CREATE TABLE gateways_following (
    replica TEXT NOT NULL PRIMARY KEY,
    said TEXT NOT NULL,
    said_at TEXT NOT NULL
);
