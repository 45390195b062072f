"""Plans in other people's training loops, and beside their curves.

Plain PyTorch needs none of this: `gpu_optimizer.apply`.
"""
