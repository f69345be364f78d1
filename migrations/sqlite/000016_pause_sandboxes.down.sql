-- SPDX-License-Identifier: Apache-2.0
ALTER TABLE sandboxes DROP COLUMN paused_micros;
ALTER TABLE sandboxes DROP COLUMN on_idle;
