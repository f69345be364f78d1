# SPDX-License-Identifier: Apache-2.0
"""The table that a benchmark prints and the JSON that it leaves."""

import json
import os


class Report:
    """Rows, each with what was measured beside it and the bar that it must meet."""

    def __init__(self, path):
        self.path, self.rows, self.missed = path, [], []

    def least(self, name, value, unit, against, bar):
        """A row whose bar is below it."""
        self.add(name, value, unit, against, bar, value >= bar)

    def add(self, name, value, unit, against=None, bar=None, is_met=None, note=None):
        """A row whose bar is above it; `note` says how it was come by, where that is not by measuring alone."""
        ratio = None if not against else round(value / against, 3)
        row = {"name": name, "value": round(value, 4), "unit": unit, "against": None if against is None else round(against, 4), "ratio": ratio}
        self.rows.append(row if note is None else {**row, "note": note})
        is_met = value <= bar if is_met is None and bar is not None else is_met
        if bar is not None and not is_met:
            self.missed.append(name)
        verdict = "" if bar is None else f"bar {bar:.4g} {'ok' if is_met else 'MISSED'}"
        beside = "" if against is None else f"beside {against:.3f}"
        print(f"{name:<34} {value:>9.3f} {unit:<5} {beside:<16} {verdict}{f' ({note})' if note else ''}", flush=True)

    def left_out(self, name, unit, why):
        """A row that could not be measured on this machine."""
        self.rows.append({"name": name, "value": None, "unit": unit, "against": None, "ratio": None})
        print(f"{name:<34} {'-':>9} {unit:<5} left out: {why}", flush=True)

    def end(self):
        """Writes the rows; ends the program with 1 if a bar was missed."""
        self.write()
        if self.missed:
            raise SystemExit(f"bench: missed: {', '.join(self.missed)}")

    def write(self):
        """Rows of other runs stay, so that each isolation may be measured alone."""
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        names = {row["name"] for row in self.rows}
        kept = json.load(open(self.path)) if os.path.exists(self.path) else []
        rows = sorted([row for row in kept if row["name"] not in names] + self.rows, key=lambda row: row["name"])
        with open(self.path, "w") as file:
            json.dump(rows, file, indent=1)
            file.write("\n")
