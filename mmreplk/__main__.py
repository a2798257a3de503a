"""``python -m mmreplk``: where the packaged configs are, for programs that take a path."""

import argparse
import difflib
import sys
from pathlib import Path

from .config.files import PREFIX, config_names, config_path


def main(argv: list[str] | None = None) -> int:
    """Run one of the commands.

    Args:
        argv (list[str], optional): The arguments. Defaults to None, those of the process.

    Returns:
        int: The exit code, 2 for a config that there is not.
    """
    parser = argparse.ArgumentParser(
        prog='python -m mmreplk', description=__doc__,
        epilog='`python -m mmreplk.ops --help`: the environment, one convolution timed.')
    commands = parser.add_subparsers(dest='command', required=True)
    config = commands.add_parser(
        'config', help='print the path of a packaged config, or the names of all',
        description='Print the path of a packaged config; without NAME the names of all.')
    config.add_argument('name', nargs='?', metavar='NAME',
                        help='such as upernet_replknet31b_ade20k, also with .py or mmreplk::')
    name = parser.parse_args(argv).name
    if name is None:
        print('\n'.join(config_names()))
        return 0
    name = name.removeprefix(PREFIX)
    try:
        print(config_path(name))
    except FileNotFoundError:
        like = difflib.get_close_matches(Path(name).stem, config_names(), n=3)
        hint = f'is it {" or ".join(like)}? ' if like else ''
        print(f'python -m mmreplk config: error: mmreplk has no config {name!r}; {hint}'
              '`python -m mmreplk config` lists all.', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
