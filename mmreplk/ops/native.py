def available(): return False, 'the compiled kernels were not built'
direct_forward=direct_weight_grad=fft_spectrum=fft_forward=fft_weight_grad=None
