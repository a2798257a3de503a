"""The tests that tests/README.md names for each promise exist."""

import re
from pathlib import Path

TESTS = Path(__file__).parent


def test_every_promise_has_tests_that_exist():
    promises = 0
    for line in (TESTS / 'README.md').read_text().splitlines():
        promise, _, names = line.strip('| ').partition(' | ')
        if not line.startswith('| ') or not names or promise == 'promise':
            continue
        promises += 1
        found = re.findall(r'`((?:[\w/]+\.py)?(?:::\w+)?)`', names)
        assert found, promise
        file = None
        for name in found:
            file, test = name.partition('::')[0] or file, name.partition('::')[2]
            text = (TESTS / file).read_text()
            assert not test or f'def {test}(' in text, f'{promise}: {file} has no {test}'
    assert promises > 40
