-- SPDX-License-Identifier: Apache-2.0
DROP TABLE peer_sessions;
DROP TABLE gateways;
