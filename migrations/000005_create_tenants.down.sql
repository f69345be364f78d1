-- SPDX-License-Identifier: Apache-2.0
DROP TABLE api_keys;
DROP TABLE secrets;
DROP TABLE resources;
DROP TABLE tenants;
