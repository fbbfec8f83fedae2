import subprocess
import sys

IMPORT = """
import sys
before = set(sys.modules)
import qloracle_gpu
print(*sorted(set(sys.modules) - before))
"""


def test_importing_the_package_loads_nothing_but_itself():
    run = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["qloracle_gpu"]
