"""Random networks share what the random convolutions of tests/ops are made with."""

import sys
from pathlib import Path

# pytest's import mode leaves out attack_cases.py, which test_attack_*.py import.
sys.path.insert(0, str(Path(__file__).parents[1] / 'ops'))
