-- SPDX-License-Identifier: Apache-2.0
-- What is kept of stopped sandboxes: their files, or what is known of the picture of their memory too.
ALTER TABLE sandboxes ADD COLUMN kept TEXT;
-- What is known of pictures of memory in snapshots.
ALTER TABLE snapshots ADD COLUMN memory TEXT;
