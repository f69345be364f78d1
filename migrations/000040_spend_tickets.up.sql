-- SPDX-License-Identifier: Apache-2.0
-- Tickets for terminals that were used, whichever orchestrator they came to; gone once they are too old.
CREATE TABLE spent_tickets (
    nonce TEXT NOT NULL PRIMARY KEY,
    good_until_micros BIGINT NOT NULL
);
