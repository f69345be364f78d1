-- SPDX-License-Identifier: Apache-2.0
DROP TABLE filter_versions;
DROP TABLE filter_components;
