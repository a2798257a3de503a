"""Files made to break the reader of checkpoints: mutated ones, and programs of pickle opcodes.

``python tests/weights/fuzz_safe_load.py [--inputs 2000] [--seed 0]`` reads that many and uses
what comes out. A file is read or refused with a ValueError; anything else, a crash above all, is a
failure. The seed of each input is written to stderr before it is read, so that the last one names
the file that ended the process.
"""

import argparse
import faulthandler
import io
import pickle
import random
import resource
import struct
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from mmreplk.weights.safe_load import read_checkpoint

SECONDS = 20  # for one input
GLOBALS = [
    'numpy dtype', 'numpy ndarray', 'numpy.core.multiarray _reconstruct',
    'numpy._core.multiarray _reconstruct', 'numpy._core.multiarray scalar',
    'numpy.core.multiarray scalar', 'builtins getattr', '__builtin__ getattr', 'builtins bytes',
    '__builtin__ bytes', '_codecs encode', 'argparse Namespace', 'collections OrderedDict',
    'collections Counter', 'mmengine.config.config ConfigDict',
    'mmengine.logging.history_buffer HistoryBuffer', 'torch Size', 'torch device',
    'torch._utils _rebuild_tensor_v2', 'torch._utils _rebuild_parameter',
    'torch._utils _rebuild_sparse_tensor', 'torch._utils _rebuild_qtensor', 'torch FloatStorage',
    'torch._utils _rebuild_meta_tensor_no_storage', 'torch float32', 'torch.nn.parameter Parameter',
    'torch Tensor', 'torch._tensor _rebuild_from_type_v2', 'os system', 'builtins eval']
CODES = ['f8', 'O', 'O8', 'i4', '2O', '(2,)O', 'V8', 'U4', 'S8', 'f8,O', '>f8', 'b', 'M8', 'x' * 50]


def program(random) -> bytes:
    """A pickle that puts values on the stack and calls, makes and fills things with them."""
    out = io.BytesIO(b'')
    out.write(b'\x80\x02}')
    out.write(b'X\x01\x00\x00\x00e')

    def value(depth=0):
        kind = random.randrange(10 if depth < 4 else 6)
        if kind == 0:
            out.write(b'J' + struct.pack('<i', random.choice([0, 1, 2, 3, 8, -1, 63, 1 << 30])))
        elif kind == 1:
            text = random.choice(CODES + ['<', '|', 'latin1', 'mean', '__class__', 'cpu']).encode()
            out.write(b'X' + struct.pack('<I', len(text)) + text)
        elif kind == 2:
            content = bytes(random.choices(range(256), k=random.choice([0, 1, 8, 8, 16, 24])))
            out.write(random.choice([b'C', b'U']) + bytes([len(content)]) + content)
        elif kind == 3:
            out.write(random.choice([b'N', b'\x88', b'\x89', b')', b']', b'}']))
        elif kind in (4, 5):
            module, name = random.choice(GLOBALS).split()
            out.write(f'c{module}\n{name}\n'.encode())
        elif kind in (6, 7):
            out.write(b'(')
            for _ in range(random.randrange(6)):
                value(depth + 1)
            out.write(b't')
        else:
            module, name = random.choice(GLOBALS).split()
            out.write(f'c{module}\n{name}\n'.encode())
            out.write(b'(')
            for _ in range(random.randrange(5)):
                value(depth + 1)
            out.write(b't' + random.choice([b'R', b'R', b'R', b'\x81']))
            for _ in range(random.randrange(3)):
                value(depth + 1)
                out.write(b'b')

    def item(content):
        """A value of Python's, in opcodes."""
        out.write(pickle.dumps(content, 2)[2:-1])

    def dtype(depth=0):
        """Of numpy, with a state that is nearly one."""
        out.write(b'cnumpy\ndtype\n')
        item((random.choice(CODES), False, random.random() < 0.8))
        out.write(b'R')
        if random.random() < 0.8:
            out.write(b'(')
            item(3)
            item(random.choice('<>|='))
            if depth < 2 and random.random() < 0.5:
                out.write(b'(')
                dtype(depth + 1)
                item(random.choice([(1, ), (2, ), (0, )]))
                out.write(b't')
            else:
                item(None)
            item(random.choice([None, None, ('a', )]))
            item(None)
            for each in (random.choice([-1, 0, 1, 8]), random.choice([-1, 1]),
                         random.choice([0, 63])):
                item(each)
            out.write(b'tb')

    def array():
        """An array or number of numpy over bytes of the file."""
        content = bytes([65] * random.choice([0, 4, 8, 8, 8, 16]))
        kind = random.randrange(3)
        core = random.choice(['core', '_core'])
        out.write([b'cnumpy\nndarray\n', f'cnumpy.{core}.multiarray\nscalar\n'.encode(),
                   f'cnumpy.{core}.multiarray\n_reconstruct\n'.encode()][kind])
        if kind == 2:
            out.write(b'(cnumpy\nndarray\n')
            item((0, ))
            item(b'b')
            out.write(b'tR(')
            item(1)
            item(random.choice([(), (1, ), (2, )]))
            dtype()
            item(False)
            item(content)
            out.write(b'tb')
            return
        out.write(b'(')
        if kind == 0:
            item(random.choice([(), (1, )]))
        dtype()
        item(content)
        out.write(b'tR')

    random.choice([value, array])()
    out.write(b's.')
    return out.getvalue()


def valid() -> dict:
    """What MMEngine saves, small."""
    return dict(
        state_dict={'w': torch.arange(6.).reshape(2, 3), 'n': torch.tensor(3)},
        meta=dict(iter=3, seed=7, config='x = 1'), number=np.float64(2.5), array=np.arange(4),
        message_hub=dict(log_scalars=dict(loss=HistoryBuffer([1., 2.], [1, 1]))),
        optimizer=dict(state={0: dict(step=torch.tensor(1.))}, param_groups=[dict(lr=0.1)]))


def mutated(content: bytes, random) -> bytes:
    """Some bytes changed, removed, doubled or swapped."""
    content = bytearray(content)
    for _ in range(random.choice([1, 1, 2, 5, 20])):
        at = random.randrange(len(content)) if content else 0
        kind = random.randrange(5)
        if kind == 0:
            content[at:at + 1] = bytes([random.randrange(256)])
        elif kind == 1:
            del content[at:at + random.choice([1, 4, 100])]
        elif kind == 2:
            content[at:at] = content[at:at + random.choice([1, 8, 60])]
        elif kind == 3:
            content[at:at] = random.choice(CODES + GLOBALS).encode()
        else:
            content = content[:at] if random.random() < 0.1 else content
    return bytes(content)


def archive(data: bytes, random) -> bytes:
    """A file as torch.save writes it, with another pickle, and now and then compressed."""
    source, out = io.BytesIO(), io.BytesIO()
    torch.save(valid(), source)
    packed = zipfile.ZIP_DEFLATED if random.random() < 0.1 else zipfile.ZIP_STORED
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, 'w', packed) as new:
        for entry in old.infolist():
            own = entry.filename.endswith('data.pkl')
            new.writestr(entry.filename, data if own else old.read(entry))
    return out.getvalue()


def pickled() -> bytes:
    """The pickle inside of a valid file."""
    file = io.BytesIO()
    torch.save(valid(), file)
    with zipfile.ZipFile(file) as archive:
        name = next(name for name in archive.namelist() if name.endswith('data.pkl'))
        return archive.read(name)


def make(seed: int) -> bytes:
    """The file of a seed."""
    chance = random.Random(seed)
    kind = seed % 5
    if kind in (0, 1):
        return archive(program(chance), chance)
    if kind == 2:
        return archive(mutated(pickled(), chance), chance)
    file = io.BytesIO()
    torch.save(valid(), file, _use_new_zipfile_serialization=kind == 3)
    return mutated(file.getvalue(), chance)


def use(value, depth: int = 0) -> None:
    """Touch what was read: an array over bytes of its own crashes here, not while it is read."""
    if depth > 20:
        return
    if isinstance(value, np.ndarray):
        value.sum(), repr(value[:3] if value.ndim else value)
        pickle.dumps(value)
    elif isinstance(value, torch.Tensor):
        if not value.is_meta and value.layout == torch.strided and value.numel() < 1000:
            repr(value)
    elif isinstance(value, dict):
        for key in list(value):
            use(key, depth + 1)
            use(value[key], depth + 1)
    elif isinstance(value, (list, tuple)):
        for each in value:
            use(each, depth + 1)
    elif not isinstance(value, type) and hasattr(value, '__dict__'):
        use(vars(value), depth + 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--inputs', type=int, default=2000)
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    torch.set_num_threads(1)
    HistoryBuffer()  # fills the table of its class
    outcomes, methods = Counter(), dict(HistoryBuffer._statistics_methods)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'file.pth'
        for seed in range(arguments.seed, arguments.seed + arguments.inputs):
            print(seed, file=sys.stderr, flush=True)
            path.write_bytes(make(seed))
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            try:
                read = read_checkpoint(str(path))
            except ValueError:
                outcomes['refused'] += 1
                continue
            except MemoryError:
                outcomes['out of memory'] += 1
                continue
            use(read)
            outcomes['read'] += 1
            assert HistoryBuffer._statistics_methods == methods, seed
    faulthandler.cancel_dump_traceback_later()
    print(', '.join(f'{count} {name}' for name, count in sorted(outcomes.items())))
    return 0


if __name__ == '__main__':
    sys.exit(main())
