# SPDX-License-Identifier: Apache-2.0
"""Unpacks an OCI layout as a container's root, and tells a size of it: on disk, not to pull.

Usage: unpack.py LAYOUT FOLDER --size image|programs      writes FOLDER and FOLDER.user
"""

import argparse
import gzip
import io
import json
import os
import shutil
import tarfile


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("layout")
    parser.add_argument("folder")
    parser.add_argument("--size", choices=["image", "programs"], required=True)
    given = parser.parse_args()

    def blob(described):
        with open(os.path.join(given.layout, "blobs", *described["digest"].split(":")), "rb") as file:
            return file.read()

    with open(os.path.join(given.layout, "index.json"), encoding="utf-8") as file:
        manifest = json.loads(blob(json.load(file)["manifests"][0]))
    shutil.rmtree(given.folder, ignore_errors=True)
    os.makedirs(given.folder)
    layers = [gzip.decompress(blob(layer)) for layer in manifest["layers"]]
    for layer in layers:
        with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
            tar.extractall(given.folder, filter="tar")
    with open(given.folder + ".user", "w", encoding="utf-8") as file:
        file.write(json.loads(blob(manifest["config"]))["config"]["User"])
    sizes = {"image": sum(map(len, layers)), "programs": len(layers[-1])}
    print(sizes[given.size])


main()
