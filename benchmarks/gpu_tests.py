"""A pytest plugin, `-p benchmarks.gpu_tests --rows DIR`: a row a failed test as it ends, and one with the totals of the run."""

import time
from collections import Counter
from pathlib import Path

from .record import Record


def pytest_addoption(parser):
    parser.addoption("--rows", type=Path, metavar="DIR")
    parser.addoption("--rows-of", default="test", metavar="STAGE")
    parser.addoption("--rows-dry", action="store_true")


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # the workers' reports come to the process that began them
        folder, stage, dry = (config.getoption(name) for name in ("--rows", "--rows-of", "--rows-dry"))
        config.pluginmanager.register(Rows(Record(folder, stage, dry), " ".join(config.invocation_params.args)))


class Rows:
    def __init__(self, record: Record, command: str):
        self.record, self.command, self.begin = record, command, time.monotonic()
        self.totals: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            self._count(report.outcome, report)

    def pytest_collectreport(self, report):
        if report.outcome != "passed":
            self._count("not collected" if report.failed else report.outcome, report)

    def _count(self, outcome: str, report) -> None:
        self.totals[outcome] += 1
        if report.failed:
            self.record.row(what=report.nodeid, error=str(report.longrepr)[-2000:])

    def pytest_sessionfinish(self, exitstatus):
        seconds = round(time.monotonic() - self.begin, 1)
        self.record.row(what="totals", command=self.command, exitstatus=int(exitstatus), seconds=seconds, **self.totals)
