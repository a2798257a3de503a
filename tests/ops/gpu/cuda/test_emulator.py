"""That the emulator sees what is wrong: faults put into the kernels on purpose."""

import re

import cases
import emulate
import pytest

from mmreplk.ops.gpu.cuda import plan, variants

LAYOUT = plan.Layout(plan.Tile(1, 8, 4, 4), 16, 2, 2, True)
MIXED = plan.Layout(plan.Tile(1, 8, 4, 4), 4, 2, 8, True)
RING = plan.Layout(plan.Tile(1, 8, 4, 4), 64, 1, 1, False)
# Of forward.cu or what it includes: what is replaced, by what, and what comes of it.
FAULTS = {
    'no wait for copies': ('forward.cu', 'copies_wait<0>();\n        BARRIER();', 'BARRIER();',
                           LAYOUT, 'written at .* while|reads what|copies that'),
    'no barrier': ('forward.cu', 'copies_wait<STAGES - 2>();\n          BARRIER();',
                   'copies_wait<STAGES - 2>();', RING, 'thread .* reads what thread'),
    'a ring that is too short': ('forward.cu', 'fetch(b + 2 * (STAGES - 1), head, 2)',
                                 'fetch(b + 2 * (STAGES - 1), slot, 2)', RING,
                                 'written at .* while|reads what|two threads'),
    'a column too far': ('stage.cuh', 'start + e < width', 'start + e <= width', MIXED,
                         'outside of all arrays|off by'),
    'an odd address': ('forward.cu', '+ image * p.out_step + j;', '+ image * p.out_step + j + 1;',
                       LAYOUT, 'not aligned'),
    'a lane that leaves': ('forward.cu', 'const u32 from = cores',
                           'if (thread_index() == 3) return;\n    const u32 from = cores', LAYOUT,
                           'not all lanes|have parted'),
    'a thread that leaves': ('forward.cu', '  const u32 base = shared_start();',
                             '  if (thread_index() > 95) return;\n'
                             '  const u32 base = shared_start();', LAYOUT, 'barrier'),
    'an output twice': ('forward.cu', 'if (image >= images ||', 'if (', LAYOUT, 'outside|twice'),
    'the wrong core': ('forward.cu', '(b - a_high + 1) * 128', '(b - a_high) * 128', LAYOUT,
                       'off by|outside|shared address'),
    'shared memory too small': ('stage.cuh', 'const u32 at = place', 'const u32 at = 65536 + place',
                                LAYOUT, 'shared address'),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_faults_are_seen(emulated, monkeypatch, tmp_path, fault):
    file, old, new, layout, what = FAULTS[fault]
    for source in emulate.SOURCES.iterdir():
        text = source.read_text()
        if source.name == file:
            assert text.count(old) >= 1
            text = text.replace(old, new)
        (tmp_path / source.name).write_text(text)
    monkeypatch.setattr(emulate, 'SOURCES', tmp_path)
    emulate.library.cache_clear()
    try:
        cases.check_forward(emulated, 'fp16', cases.problem(batch=13, channels=1, size=(16, 16)),
                            variants.Forward(layout, (1, 1)))
    except (RuntimeError, AssertionError) as error:
        text = str(error) if isinstance(error, RuntimeError) else 'off by'
        assert re.search(what, text), text
    else:
        pytest.fail('nothing was noticed')
    finally:
        emulate.library.cache_clear()
