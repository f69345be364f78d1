-- SPDX-License-Identifier: Apache-2.0
-- What the gateways that follow each orchestrator ask for and sign with, as JSON: budgets are shared out
-- over all of them, and each shows the keys of all. Said anew each second; worth nothing after a crash.
CREATE UNLOGGED TABLE gateways_following (
    replica TEXT NOT NULL PRIMARY KEY,
    said TEXT NOT NULL,
    said_at TIMESTAMPTZ NOT NULL
);
