from ..packages import need_mm

need_mm('mmreplk.commands')
