# SPDX-License-Identifier: Apache-2.0
"""What programs are built from, as CycloneDX 1.6: every crate that is linked, with version and licence.

Usage: sbom.py TARGET PACKAGE...      needs cargo, and the packages' dependencies fetched
"""

import json
import subprocess
import sys


def crates(target, package):
    """(name, version, licence, from the registry) of each crate that the package links."""
    command = ["cargo", "tree", "--locked", "--package", package, "--target", target, "--edges", "normal",
               "--prefix", "none", "--no-dedupe", "--format", "{p}\t{l}"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for line in text.splitlines():
        about, licence = line.split("\t")
        name, version, *more = about.split(" ")
        # A crate of ours is told with its path.
        is_ours = any(word.startswith("(/") for word in more)
        yield name, version.removeprefix("v"), licence, not is_ours


def component(name, version, licence, is_registered):
    found = {"type": "library", "name": name, "version": version}
    if licence:
        found["licenses"] = [{"expression": licence.replace("/", " OR ")}]
    if is_registered:
        found["purl"] = f"pkg:cargo/{name}@{version}"
    return found


def main():
    target, *packages = sys.argv[1:]
    found = sorted({crate for package in packages for crate in crates(target, package)})
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": packages[0]}},
        "components": [component(*crate) for crate in found],
    }
    json.dump(document, sys.stdout, indent=1)


main()
