-- SPDX-License-Identifier: Apache-2.0
ALTER TABLE warm_sandboxes DROP COLUMN place;
ALTER TABLE sandboxes DROP COLUMN place;
