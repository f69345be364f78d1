# SPDX-License-Identifier: Apache-2.0
"""The report: TAP, one line for each check, with what stopped it and what its control did."""

import sys


class Report:
    """Counts as it prints."""

    def __init__(self, planned):
        self.passed = self.failed = self.skipped = 0
        self.holes, self.uncounted, self.groups = [], [], {}
        print(f"TAP version 14\n1..{planned}", flush=True)

    @property
    def number(self):
        return self.passed + self.failed + self.skipped

    def held(self, name, tried, how, control):
        self.passed += 1
        group = name.partition("/")[0]
        self.groups[group] = self.groups.get(group, 0) + 1
        self._print(f"ok {self.number} - {name}: {tried}", how, control)

    def hole(self, name, tried, how, control=""):
        self.failed += 1
        self.holes.append(f"{name}: {tried}: {how}")
        self._print(f"not ok {self.number} - {name}: {tried}", how, control)

    def not_counted(self, name, tried, how, control):
        """The control did not get through either, so nothing is proven."""
        self.failed += 1
        self.uncounted.append(f"{name}: {tried}: {control}")
        self._print(f"not ok {self.number} - {name}: {tried}", f"not counted: {how}", control)

    def excused(self, name, tried, reason):
        self.skipped += 1
        self._print(f"ok {self.number} - {name}: {tried} # SKIP {reason}", "", "")

    def end(self):
        """The summary; the answer is the exit code."""
        groups = ", ".join(f"{count} {group}" for group, count in sorted(self.groups.items()))
        print(f"# held: {groups or 'nothing'}; not counted for a reason: {self.skipped}")
        for line in self.holes:
            print(f"# HOLE {line}")
        for line in self.uncounted:
            print(f"# NOT COUNTED {line}")
        print(f"{self.passed} passed, {self.failed} failed")
        sys.stdout.flush()
        return 1 if self.failed else 0

    def _print(self, line, how, control):
        print(line)
        for text in (how, f"control, {control}" if control else ""):
            if text:
                print("# " + "".join(c if c.isprintable() else "?" for c in " ".join(text.split())))
        sys.stdout.flush()
