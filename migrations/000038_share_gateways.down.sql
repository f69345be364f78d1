-- SPDX-License-Identifier: Apache-2.0
DROP TABLE gateways_following;
