def supports(problem): return False, 'not yet'
