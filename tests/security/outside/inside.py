# SPDX-License-Identifier: Apache-2.0
"""Carries the tables of checks into a sandbox, as an argument of its Python: no file is needed."""

import base64
import json
import os
import zlib

# Loads the modules that come with it, in their order, and runs checks or another function of theirs.
LOADER = """
import base64, json, sys, types, zlib
sent = json.loads(zlib.decompress(base64.b64decode(sys.argv[1])))
for name, source in sent["modules"]:
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name, "exec"), module.__dict__)
getattr(sys.modules[sent["module"]], sent["function"])(*sent["arguments"])
"""
ORDER = ["core", "network", "files", "kernel", "slot", "exhaustion", "neighbours", "cluster"]


def load(folder):
    """The sources of the tables, in an order in which each finds what it imports."""
    modules = []
    for name in ORDER:
        with open(os.path.join(folder, f"{name}.py")) as file:
            modules.append([name, file.read()])
    return modules


def packed(modules, module, function, *arguments):
    """A function of the tables with its arguments, for the loader."""
    sent = {"modules": modules, "module": module, "function": function, "arguments": arguments}
    return base64.b64encode(zlib.compress(json.dumps(sent).encode(), 9)).decode()


def call(api, sandbox, modules, module, function, *arguments, seconds=60):
    """Calls a function of the tables inside; returns exit code, output and errors."""
    return api.python(sandbox, LOADER, packed(modules, module, function, *arguments), seconds=seconds)


def outcomes(api, sandbox, modules, names, target, seconds=240):
    """The outcome of each check, by its name. What was not reported is not there."""
    code, out, errors = call(api, sandbox, modules, "core", "main", names, target, seconds=seconds)
    found = {}
    for line in out.splitlines():
        if line.startswith("{"):
            said = json.loads(line)
            found[said.pop("name")] = said
    missing = {"outcome": "undecided", "how": f"the sandbox did not report it (exit {code}): {errors[-200:].strip()}",
               "is_killed": code is None}
    return {name: found.get(name, missing) for name in names}
