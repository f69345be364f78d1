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
# Every row that there is to be, with its unit.
ROWS = {f"audit_rate.{kind}.{database}": "1/s" for kind in ("decisions", "files") for database in ("sqlite", "postgres")}
ROWS |= {"audit_handover.mean": "us", "audit_handover.p99": "us"}


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
    for name in sorted(ROWS.keys() - {row["name"] for row in report.rows}):
        report.left_out(name, ROWS[name], "not measured, see above")
        report.missed.append(name)
    report.end()


main()
