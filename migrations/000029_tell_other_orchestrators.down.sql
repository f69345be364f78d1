-- SPDX-License-Identifier: Apache-2.0
DROP TABLE leases;
DROP TRIGGER gateways_told ON gateways;
DROP TRIGGER peer_sessions_told ON peer_sessions;
DROP TRIGGER sandboxes_told ON sandboxes;
DROP TRIGGER sessions_told ON sessions;
DROP TRIGGER tenants_told ON tenants;
DROP FUNCTION postern_notify();
