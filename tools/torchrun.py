"""torchrun, without its traceback where a worker has said itself what the user got wrong.

``python tools/torchrun.py ...`` takes what ``python -m torch.distributed.run ...`` takes.
"""

import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

USER_ERROR = 2

if __name__ == '__main__':
    try:
        main()
    except ChildFailedError as error:
        if error.get_first_failure()[1].exitcode != USER_ERROR:
            raise
        sys.exit(USER_ERROR)
