import pathlib
import subprocess
import sys


def test_steps_inside_shard_map_equal_those_on_one_device():
    program = pathlib.Path(__file__).with_name("sharded_step.py")
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "agree with one device" in done.stdout
