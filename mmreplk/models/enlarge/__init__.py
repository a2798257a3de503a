from ...packages import need_mm

need_mm('mmreplk.models.enlarge')
