# SPDX-License-Identifier: Apache-2.0
"""Unpacks an OCI layout as a container's root; fails where a digest is not that of what it names.

Usage: unpack.py LAYOUT FOLDER
Writes FOLDER, and beside it FOLDER.json: user, entrypoint, labels, the tag, and bytes on disk (not to pull) of
the whole image and of its last layer.
"""

import gzip
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def blob(layout, described):
    """What a descriptor names, which has to be what it says."""
    with open(os.path.join(layout, "blobs", *described["digest"].split(":")), "rb") as file:
        data = file.read()
    if (digest(data), len(data)) != (described["digest"], described["size"]):
        sys.exit(f"unpack: {layout}: {described['digest']} is not what it names")
    return data


def main():
    layout, folder = sys.argv[1:]
    with open(os.path.join(layout, "oci-layout"), encoding="utf-8") as file:
        assert json.load(file) == {"imageLayoutVersion": "1.0.0"}
    with open(os.path.join(layout, "index.json"), encoding="utf-8") as file:
        (named,) = json.load(file)["manifests"]
    manifest = json.loads(blob(layout, named))
    image = json.loads(blob(layout, manifest["config"]))
    layers = [gzip.decompress(blob(layout, described)) for described in manifest["layers"]]
    if [digest(layer) for layer in layers] != image["rootfs"]["diff_ids"]:
        sys.exit(f"unpack: {layout}: its layers are not those that it lists")
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    # Its user looks into it, whoever unpacks it.
    os.chmod(folder, 0o755)
    for layer in layers:
        with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
            # We wrote it ourselves. Python 3.14 would leave modes out; Debian's 3.11.2 knows no filters yet.
            tar.extraction_filter = lambda member, _to: member
            tar.extractall(folder)
    config = image["config"]
    told = {
        "user": config["User"],
        "entrypoint": config["Entrypoint"],
        "labels": config["Labels"],
        "tag": named["annotations"]["org.opencontainers.image.ref.name"],
        "image": sum(map(len, layers)),
        "programs": len(layers[-1]),
    }
    with open(folder + ".json", "w", encoding="utf-8") as file:
        json.dump(told, file)


main()
