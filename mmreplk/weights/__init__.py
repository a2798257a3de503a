__all__ = ['Pretrained']


def __getattr__(name: str):
    # Not at import: Pretrained is MMEngine's, and other modules here do without.
    if name == 'Pretrained':
        from ..packages import need_mm
        need_mm('mmreplk.weights.Pretrained')
        from .pretrained import Pretrained
        return Pretrained
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
