"""How much scratch memory a CUDA reduction takes, such as the sum behind a bias gradient.

Where each output sums many values, PyTorch splits the sum over thread blocks and lets them meet in
a buffer from the caching allocator: 74 MiB for the bias of one layer of ViT-B at batch 64. This
follows `setReduceConfig` and `global_memory_size` in `aten/src/ATen/native/cuda/Reduce.cuh`
(PyTorch 2.10) step by step.
"""

import math
from collections.abc import Collection, Sequence

from gpu_optimizer.kernels.attention import CudaTarget

# Of float: sums of half-precision values are kept in fp32.
_SUM_BYTES = 4
_MAX_THREADS = 512
_WARP = 32
_INPUT_VECTOR = 4
_VALUES_PER_THREAD = (16, 256)


def reduction_scratch_bytes(
    shape: Sequence[int], strides: Sequence[int], reduced: Collection[int], target: CudaTarget
) -> int:
    """Return the size of the buffer in which thread blocks of a sum or mean meet; 0: none.

    Parameters
    ----------
    shape, strides
        Of the input, in elements.
    reduced
        Dimensions that are summed up, counted from 0.
    target
        The GPU.
    """
    wide = [d for d in range(len(shape)) if shape[d] > 1]
    n_inputs = math.prod(shape[d] for d in wide if d in reduced)
    n_outputs = math.prod(shape[d] for d in wide if d not in reduced)
    if not wide or n_inputs * n_outputs == 0:
        return 0
    fastest = min(wide, key=lambda d: (strides[d], d not in reduced))
    within = fastest in reduced
    dense = strides[fastest] == 1
    width, height = (n_inputs, n_outputs) if within else (n_outputs, n_inputs)
    vector = 1
    if within and dense and n_inputs >= 128:
        width //= _INPUT_VECTOR
    elif not within and dense:
        vector = math.gcd(shape[fastest], 4)
        width //= vector
    block_width, block_height = _block(width, height, _MAX_THREADS // vector)

    step_input = block_width if within else 1
    step_output = 1 if within else block_width
    least, most = _VALUES_PER_THREAD
    if math.ceil(n_inputs / step_input) < min(block_height * 16, most):
        return 0
    step_input *= block_height
    per_thread = math.ceil(n_inputs / step_input)
    blocks_per_multiprocessor = target.threads_per_multiprocessor // (block_width * block_height)
    target_grid = target.n_multiprocessors * blocks_per_multiprocessor
    grid = math.ceil(n_outputs // vector / step_output)
    if per_thread < most or grid > target_grid:
        return 0
    blocks = min(math.ceil(target_grid / grid), math.ceil(per_thread / least))
    blocks = max(blocks, math.ceil(per_thread / most))
    if blocks <= 1:
        return 0
    size_bytes = _SUM_BYTES * n_outputs * blocks
    return size_bytes if within else size_bytes * block_width * vector


def _block(width: int, height: int, max_threads: int) -> tuple[int, int]:
    """Follow `ReduceConfig::set_block_dimension`."""
    widest = _power_below(width) if width < max_threads else max_threads
    highest = _power_below(height) if height < max_threads else max_threads
    block_width = min(widest, _WARP)
    block_height = min(highest, max_threads // block_width)
    return min(widest, max_threads // block_height), block_height


def _power_below(value: int) -> int:
    return 1 << (max(value, 1).bit_length() - 1)
