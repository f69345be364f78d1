-- SPDX-License-Identifier: Apache-2.0
-- Facts about this installation, by name: its id, the stream's epoch, the wrapped root secret.
CREATE TABLE installation (
    name TEXT NOT NULL PRIMARY KEY,
    value BLOB NOT NULL
);
