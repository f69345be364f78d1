-- SPDX-License-Identifier: Apache-2.0
ALTER TABLE api_keys DROP COLUMN labels;
ALTER TABLE api_keys DROP COLUMN templates;
