"""``python -m gpu_optimizer.cli``."""

from gpu_optimizer.cli import app

if __name__ == "__main__":
    app(prog_name="gpu-optimizer")
