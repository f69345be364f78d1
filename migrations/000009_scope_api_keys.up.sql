-- SPDX-License-Identifier: Apache-2.0
-- What a key is for, as JSON: a list of templates, an object of labels. Without them: everything.
ALTER TABLE api_keys ADD COLUMN templates TEXT;
ALTER TABLE api_keys ADD COLUMN labels TEXT;
