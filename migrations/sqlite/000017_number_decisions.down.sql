-- SPDX-License-Identifier: Apache-2.0
DROP INDEX decisions_by_number;
ALTER TABLE decisions DROP COLUMN number;
DROP TABLE decision_numbers;
