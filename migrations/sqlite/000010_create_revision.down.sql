-- SPDX-License-Identifier: Apache-2.0
DROP TABLE removed_tenants;
ALTER TABLE tenants DROP COLUMN revision;
DROP TABLE revision;
