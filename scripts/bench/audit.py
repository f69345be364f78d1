# SPDX-License-Identifier: Apache-2.0
"""The table of what tests measured: lines `measured {JSON}` of standard input. Usage: audit.py JSON"""

import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.dont_write_bytecode = True

from report import Report  # noqa: E402  (the folder is ours to name first)

# Events a second that are drained at least, and microseconds that a request pays at most.
DRAINED, PAID = 20_000, 5.0
MARK = "measured "


def main():
    report = Report(sys.argv[1])
    for line in sys.stdin:
        at = line.find(MARK)
        if at < 0:
            sys.stderr.write(line)
            continue
        row = json.loads(line[at + len(MARK):])
        if row["name"].startswith("audit_rate."):
            report.least(row["name"], row["value"], row["unit"], None, DRAINED)
        else:
            report.add(row["name"], row["value"], row["unit"], None, PAID)
    if not report.rows:
        raise SystemExit("bench: nothing was measured; see above")
    report.end()


main()
