"""Become `python TOOL ARGS`, in a process that has the imports already; see test_exercise.py.

Run by `runpy.run_path` with these globals: `ARGV`, the tool's path and its arguments; `FOLDER`, the
working directory; `ENV`, more environment variables; `LOG`, the file that takes what is written.
"""

import os
import runpy
import sys

os.chdir(FOLDER)  # noqa: F821
os.environ.update(ENV)  # noqa: F821
# As Python does at its start.
sys.path[:0] = filter(None, ENV.get('PYTHONPATH', '').split(os.pathsep))  # noqa: F821
log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # noqa: F821
os.dup2(log, 1)
os.dup2(log, 2)
sys.argv = list(ARGV)  # noqa: F821
print('$', *sys.argv, flush=True)
runpy.run_path(sys.argv[0], run_name='__main__')
