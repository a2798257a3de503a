"""Run tools one after the other in this process, as `python TOOL ARGS` would; see test_exercise.

Started by `runpy.run_path` with these globals: `COMMANDS`, lists of a tool's path and its
arguments; `FOLDER`, the working directory; `LOG`, the file that takes what they write.
"""

import os
import runpy
import sys

os.chdir(FOLDER)  # noqa: F821
log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # noqa: F821
os.dup2(log, 1)
os.dup2(log, 2)
for command in COMMANDS:  # noqa: F821
    print('$', *command, flush=True)
    sys.argv = list(command)
    runpy.run_path(command[0], run_name='__main__')
