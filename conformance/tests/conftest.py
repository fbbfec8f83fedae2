"""What several test files need: the command, scripts in processes of their own, the schema.

Repro scripts are run where nothing of ours can be imported, each in a process of its own.

The processes are forks of one that has imported the framework and nothing else: torch alone takes
longer to import than a script to run.
"""

import json
import os
import signal
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

from qloracle_conformance.commands import main
from qloracle_conformance.reports import data

FORKS = r"""
import importlib, json, os, runpy, sys, traceback

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is blocked")

importlib.import_module(sys.argv[1])
for line in sys.stdin:
    script, blocked, folder, said = json.loads(line)
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()

os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.dup2(os.open(said, os.O_WRONLY), 1)
os.dup2(1, 2)
os.chdir(folder)
assert not {name.partition(".")[0] for name in sys.modules} & set(blocked)
sys.meta_path.insert(0, Blocked())
code = 1
try:
    runpy.run_path(script, run_name="__main__")
    code = 0
except SystemExit as end:
    code = int(end.code or 0)
except BaseException:
    traceback.print_exc()
sys.stdout.flush()
os._exit(code)  # to tidy up after torch takes longer than the script
"""
OURS = "qloracle,qloracle_conformance,qloracle_gpu"


@pytest.fixture
def command(monkeypatch, capsys):
    """`command("verify", ...)` gives the exit code, the output and what goes to stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["qloracle", *arguments])
        with pytest.raises(SystemExit) as end:
            main.main()
        return end.value.code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def run_script(tmp_path_factory):
    """`run_script(script, blocked=OURS, framework="numpy")` gives its exit code and its output."""
    said = tmp_path_factory.mktemp("scripts") / "said"
    processes = {}

    def process(framework):
        if framework not in processes:
            processes[framework] = subprocess.Popen(
                [sys.executable, "-I", "-B", "-c", FORKS, framework],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
            )  # fmt: skip
        return processes[framework]

    def run(script, blocked=OURS, framework="numpy"):
        said.write_text("")
        order = str(script), blocked.split(","), str(Path.cwd()), str(said)
        print(json.dumps(order), file=process(framework).stdin, flush=True)
        return int(process(framework).stdout.readline()), said.read_text()

    yield run
    for one in processes.values():
        os.killpg(one.pid, signal.SIGKILL)
        one.communicate()


@pytest.fixture(scope="session")
def alive():
    """Whether there is a process of this number."""

    def exists(pid):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True

    return exists


@pytest.fixture(scope="session")
def schema():
    """The published form of a report."""
    return json.loads((files("qloracle_conformance.reports") / "report.schema.json").read_text())


@pytest.fixture(scope="session")
def validate(schema):
    """Compare a report, as it is written, with its schema."""
    checker = jsonschema.Draft202012Validator(schema)
    return lambda report: checker.validate(json.loads(data.to_json(report)))
