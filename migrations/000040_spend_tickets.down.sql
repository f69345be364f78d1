-- SPDX-License-Identifier: Apache-2.0
DROP TABLE spent_tickets;
