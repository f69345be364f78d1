-- SPDX-License-Identifier: Apache-2.0
ALTER TABLE sandboxes DROP COLUMN told_deadline_micros;
