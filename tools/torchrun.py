"""torchrun, without its traceback: a worker has said what the user got wrong, or is named.

``python tools/torchrun.py ...`` takes what ``python -m torch.distributed.run ...`` takes.
"""

import signal
import sys

from torch.distributed import DistNetworkError
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

USER_ERROR = 2


def describe(rank: int, failure) -> str:
    """One line about the process that failed first, whereupon torchrun ended the others."""
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        hint = ', as the system does when memory runs out' if name == 'SIGKILL' else ''
        what = f'was killed by {name}{hint}'
    else:
        what = f'ended with exit code {failure.exitcode}; its error is above'
    return (f'torchrun.py: error: the process of rank {rank} (local rank {failure.local_rank}, pid '
            f'{failure.pid}) {what}. The others of this machine were ended. A training goes on '
            'from its last checkpoint by the same command with --resume.')


if __name__ == '__main__':
    try:
        main()
    except DistNetworkError as error:
        sys.exit(f'torchrun.py: error: {str(error).splitlines()[0]} (MASTER_ADDR, PORT). '
                 'If the port is in use, name another one: PORT=29501; without PORT a free one '
                 'is taken.')
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode != USER_ERROR:
            sys.exit(f'{error}\n{describe(rank, failure)}')
        sys.exit(USER_ERROR)
