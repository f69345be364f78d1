# SPDX-License-Identifier: Apache-2.0
"""Writes a folder as an OCI image layout: the same bytes for the same files, whoever writes it.

Layers: what hardly changes (authorities, users), what runs in a container of its own beside a sandbox, and
/usr with the programs.
Usage: layout.py ROOT LAYOUT --tag TAG --user UID:GID --entrypoint PATH --target TRIPLE
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile

MEDIA = "application/vnd.oci.image"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def entries(root, keep):
    """Paths below root, folders first, in an order that no file system decides."""
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(folders) + sorted(files):
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, root)
            if keep(relative):
                yield relative, path


def layer(root, keep):
    """A tar of those entries, owned by root, from 1970."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for relative, path in entries(root, keep):
            info = tarfile.TarInfo(relative)
            status = os.lstat(path)
            info.mode = status.st_mode & 0o7777
            if os.path.isdir(path):
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            else:
                info.size = status.st_size
                with open(path, "rb") as file:
                    tar.addfile(info, file)
    return data.getvalue()


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Layout:
    """A layout's folder, blob by blob."""

    def __init__(self, folder):
        shutil.rmtree(folder, ignore_errors=True)
        self.blobs = os.path.join(folder, "blobs", "sha256")
        self.folder = folder
        os.makedirs(self.blobs)

    def put(self, kind, data):
        name = digest(data)
        with open(os.path.join(self.blobs, name.split(":")[1]), "wb") as file:
            file.write(data)
        return {"mediaType": f"{MEDIA}.{kind}", "digest": name, "size": len(data)}

    def write(self, name, value):
        with open(os.path.join(self.folder, name), "w", encoding="utf-8") as file:
            json.dump(value, file)


def main():
    parser = argparse.ArgumentParser()
    for name in ("root", "layout"):
        parser.add_argument(name)
    for name in ("--tag", "--user", "--entrypoint", "--target"):
        parser.add_argument(name, required=True)
    given = parser.parse_args()
    layout = Layout(given.layout)
    is_program = lambda path: path == "usr" or path.startswith("usr/")
    is_beside = lambda path: path == "usr/bin/postern-sync"
    parts = {
        "users and authorities": lambda path: not is_program(path),
        "what runs beside": is_beside,
        "programs": lambda path: is_program(path) and not is_beside(path),
    }
    parts = {what: keep for what, keep in parts.items() if any(entries(given.root, keep))}
    tars = [layer(given.root, keep) for keep in parts.values()]
    layers = [layout.put("layer.v1.tar+gzip", gzip.compress(tar, mtime=0)) for tar in tars]
    config = {
        "architecture": ARCHITECTURES[given.target.split("-")[0]],
        "os": "linux",
        "config": {
            "User": given.user,
            "Entrypoint": [given.entrypoint],
            "Env": ["PATH=/usr/bin"],
            "WorkingDir": "/",
            "Labels": {
                "org.opencontainers.image.title": os.path.basename(given.layout),
                "org.opencontainers.image.version": given.tag,
                "org.opencontainers.image.licenses": "Apache-2.0",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [digest(tar) for tar in tars]},
        "history": [{"created_by": what} for what in parts],
    }
    image = {
        "schemaVersion": 2,
        "mediaType": f"{MEDIA}.manifest.v1+json",
        "config": layout.put("config.v1+json", json.dumps(config).encode()),
        "layers": layers,
    }
    named = layout.put("manifest.v1+json", json.dumps(image).encode())
    named["annotations"] = {"org.opencontainers.image.ref.name": given.tag}
    index = {"schemaVersion": 2, "mediaType": f"{MEDIA}.index.v1+json", "manifests": [named]}
    layout.write("index.json", index)
    layout.write("oci-layout", {"imageLayoutVersion": "1.0.0"})
    compressed, whole = sum(it["size"] for it in layers), sum(map(len, tars))
    print(f"images: {given.layout}: {compressed / 1e6:.1f} MB to pull, {whole / 1e6:.1f} MB unpacked, "
          f"programs {layers[-1]['size'] / 1e6:.1f} MB; {named['digest']}")


main()
