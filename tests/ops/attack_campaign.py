"""Many more random inputs for the properties of test_attack_*.py than the tests try.

``python tests/ops/attack_campaign.py [--minutes 10] [--only NAME] [--seed S]`` prints, for
each property, the inputs tried, the rounds that failed and those that crashed or hung, and exits
with 1 if there was one. Each round runs in a process of its own, so that a crash is counted; the
command that repeats a failed round is printed with it.
"""

import argparse
import importlib
import json
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

TESTS = Path(__file__).resolve().parents[1]
FOLDERS = [TESTS / 'ops'] + [TESTS / 'models'] * (find_spec('mmcv') is not None)
sys.path[:0] = map(str, FOLDERS)
INPUTS = 40  # of one round
LONGEST = 600  # seconds a round may take before it counts as hung


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=10)
    parser.add_argument('--only', default='', help='properties whose name contains this')
    parser.add_argument('--seed', type=int, help='of the whole campaign; fresh by default')
    parser.add_argument('--rounds', type=int, help='end after so many rounds of each property')
    parser.add_argument('--child', help=argparse.SUPPRESS)  # a file for the count of one round
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for path in sorted(path for folder in FOLDERS for path in folder.glob('test_attack_*.py')):
        module = importlib.import_module(path.stem)
        assert Path(module.__file__) == path, f'two files have the name of {path}'
    from attack_cases import PROPERTIES
    if arguments.child:
        return _round(*PROPERTIES[arguments.only], arguments.seed, Path(arguments.child))
    chosen = [name for name in PROPERTIES if arguments.only in name]
    if not chosen:
        parser.error(f'--only {arguments.only!r}: no property has that in its name; there are '
                     f'{", ".join(PROPERTIES)}')
    start = random.getrandbits(48) if arguments.seed is None else arguments.seed
    print(f'--seed {start}', flush=True)
    tried, failed, died = _campaign(chosen, start, arguments)
    for name in chosen:
        print(f'{name}: {tried[name]} inputs, {failed[name]} rounds of {INPUTS} with a failure, '
              f'{died[name]} crashed or hung')
    print(f'all: {tried.total()} inputs, {failed.total()} failures, {died.total()} crashes')
    return int(failed.total() + died.total() > 0)


def _campaign(chosen, start, arguments):
    tried, failed, died = Counter(), Counter(), Counter()
    end, count = time.monotonic() + 60 * arguments.minutes, 0
    # A campaign too short for a round of each does not try the same ones every time.
    chosen = random.Random(start).sample(chosen, len(chosen))
    while time.monotonic() < end and (arguments.rounds is None or count < arguments.rounds):
        for name in chosen:
            # The first round of a seed has that seed, so that it can be repeated alone.
            code, inputs = _in_a_process(name, start + count)
            tried[name] += inputs
            failed[name] += code == 1
            died[name] += code not in (0, 1)
            if code:
                how = 'failed' if code == 1 else 'hung' if code is None else f'crashed ({code})'
                print(f'{name} {how}: --only {name} --rounds 1 --seed {start + count}', flush=True)
            if time.monotonic() > end:
                break
        count += 1
    return tried, failed, died


def _in_a_process(name, number):
    """Exit code (None: hung) and the inputs that were tried."""
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder, 'counts.json')
        try:
            code = subprocess.run(
                [sys.executable, __file__, '--only', name, '--seed', str(number), '--child',
                 str(counts)], timeout=LONGEST).returncode
        except subprocess.TimeoutExpired:
            code = None
        return code, json.loads(counts.read_text()) if counts.exists() else 0


def _round(function, strategies, number, counts) -> int:
    tried = 0

    def counted(**drawn):
        nonlocal tried
        tried += 1
        function(**drawn)

    test = seed(number)(settings(
        max_examples=INPUTS, deadline=None, database=None, print_blob=True,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck))(given(**strategies)(counted)))
    try:
        test()
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        counts.write_text(json.dumps(tried))
    return 0


if __name__ == '__main__':
    sys.exit(main())
