"""Many more random inputs for the properties of test_attack_*.py than the tests try.

``python tests/test_ops/attack_campaign.py [--minutes 10] [--only NAME]`` prints, for each property,
the inputs tried and the failures, and exits with 1 if there was one. Seeds are fresh each time;
what hypothesis prints of a failure repeats it.
"""

import argparse
import importlib
import random
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

sys.path.insert(0, str(Path(__file__).resolve().parent))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=10)
    parser.add_argument('--only', default='', help='properties whose name contains this')
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for path in sorted(Path(__file__).parent.glob('test_attack_*.py')):
        importlib.import_module(path.stem)
    from attack_cases import PROPERTIES
    chosen = {name: of for name, of in PROPERTIES.items() if arguments.only in name}
    tried, failed, end = Counter(), Counter(), time.monotonic() + 60 * arguments.minutes
    while time.monotonic() < end:
        for name, (function, strategies) in chosen.items():
            _round(name, function, strategies, tried, failed)
            if time.monotonic() > end:
                break
    for name in chosen:
        print(f'{name}: {tried[name]} inputs, {failed[name]} rounds of 40 with a failure')
    print(f'all: {tried.total()} inputs, {failed.total()} failures')
    return int(failed.total() > 0)


def _round(name, function, strategies, tried, failed):
    def counted(**drawn):
        tried[name] += 1
        function(**drawn)

    test = seed(random.getrandbits(60))(settings(
        max_examples=40, deadline=None, database=None, print_blob=True,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck))(given(**strategies)(counted)))
    try:
        test()
    except Exception:
        failed[name] += 1
        traceback.print_exc()


if __name__ == '__main__':
    sys.exit(main())
