# SPDX-License-Identifier: Apache-2.0
"""The escape suite: lays out bait, sends the attempts in, runs their controls, and reports.

    checks/    the attempts, which run inside and, as controls, outside
    outside/   what only runs outside: bait, the throw-away world, the API, the report
    suite.py   one run against one sandbox of this machine; clustered.py: of a cluster
"""

import argparse
import fnmatch
import os
import signal
import sys

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [FOLDER, os.path.join(FOLDER, "checks"), os.path.join(FOLDER, "outside")]
sys.dont_write_bytecode = True

import calls  # noqa: E402  (the folders are ours to name first)
import clustered  # noqa: E402
import core  # noqa: E402
import planted  # noqa: E402
import tokens  # noqa: E402
from api import Api, ApiError  # noqa: E402
from bait import Bait  # noqa: E402
from clustered import ClusterSuite  # noqa: E402
from kubectl import KubectlError  # noqa: E402
from report import Report  # noqa: E402
from suite import Suite  # noqa: E402


def local_names():
    traps = [f"slot/planted-{trap.name}" for trap in planted.TRAPS]
    traps += [f"calls/{trap.name}" for trap in calls.TRAPS]
    table = [name for name in core.TABLE if not name.startswith("cluster/")]
    return [*table, *traps, *(f"neighbours/token-{kind}" for kind in tokens.TRIED)]


def tried(name):
    if name in core.TABLE:
        return core.TABLE[name].tried
    if name in clustered.SPECS:
        return clustered.SPECS[name]
    kind, _, short = name.partition("/")
    if kind == "calls":
        return next(trap.tried for trap in calls.TRAPS if trap.name == short)
    short = short.partition("-")[2]
    return tokens.TRIED.get(short) or next(trap.tried for trap in planted.TRAPS if trap.name == short)


def main():
    parser = argparse.ArgumentParser(prog="validate_isolation.sh", description="tries to break out of a sandbox")
    parser.add_argument("namespace", nargs="?", metavar="NAMESPACE", help="where a cluster's sandboxes are [sandbox-system]")
    parser.add_argument("--local", metavar="SANDBOX_ID", help="a running sandbox of this machine instead")
    parser.add_argument("--only", metavar="PATTERN", action="append", help="checks whose name matches, such as 'network/*'")
    parser.add_argument("--list", action="store_true", help="print the names of the checks and what each tries")
    wanted = parser.parse_args()
    patterns = wanted.only or ["*"]
    if wanted.local and wanted.namespace:
        parser.error("give NAMESPACE or --local, not both")
    if wanted.list and not (wanted.local or wanted.namespace):
        of_place = list(dict.fromkeys([*local_names(), *clustered.names()]))
    else:
        of_place = local_names() if wanted.local else clustered.names()
    names = [name for name in of_place if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    if wanted.list:
        for name in names:
            print(f"{name}: {tried(name)}")
        return 0
    if not names:
        parser.error(f"no check matches {patterns}")
    leave_nothing(os.getpid())
    if wanted.local:
        return run(Api(os.environ), wanted.local, names)
    return run(Api(os.environ), wanted.namespace or "sandbox-system", names, ClusterSuite)


def leave_nothing(owner):
    """Whoever asks us to end still has everything that was made removed."""

    def end(number, _):
        if os.getpid() != owner:
            os._exit(128 + number)  # An attempt's process; what was made is not its own.
        for known in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(known, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for known in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(known) == signal.SIG_DFL:  # `nohup` has it ignored.
            signal.signal(known, end)


def run(api, sandbox, names, kind=Suite):
    """Runs these checks and prints the report; the answer is the exit code.

    `sandbox` is what a run of this kind is against: a sandbox of this machine, or a namespace."""
    try:
        with Bait() as bait:
            suite = kind(api, sandbox, bait, names)
            report = Report(len(names))
            suite.run(report)
    except (ApiError, KubectlError) as error:
        print(f"Bail out! {error}")
        return 2
    finally:
        api.destroy_all()
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
