-- SPDX-License-Identifier: Apache-2.0
-- Decisions are numbered as they come home, so that a reader who follows them misses none: their ids
-- are of when they were made, and a gateway may bring some late. Whoever keeps a batch holds the one
-- row until it is committed, so numbers are seen in their order. Those of before have none (0).
CREATE TABLE decision_numbers (
    only_row BIGINT NOT NULL PRIMARY KEY,
    value BIGINT NOT NULL
);
INSERT INTO decision_numbers (only_row, value) VALUES (1, 0);
ALTER TABLE decisions ADD COLUMN number BIGINT NOT NULL DEFAULT 0;
CREATE INDEX decisions_by_number ON decisions (number);
